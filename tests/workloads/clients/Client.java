// Client url|http BASE LIST: as client.py, with HttpURLConnection and HttpClient.

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.zip.CRC32;

public class Client {
    record Answer(int status, byte[] body) {}

    static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    public static void main(String[] words) throws Exception {
        for (String line : Files.readAllLines(Path.of(words[2]))) {
            String[] fields = line.split(" ");
            byte[] body = "x".repeat(Integer.parseInt(fields[2])).getBytes();
            URI uri = URI.create(words[1] + fields[1]);
            try {
                Answer answer = words[0].equals("url") ? withUrl(uri, fields[0], body) : withClient(uri, fields[0], body);
                CRC32 sum = new CRC32();
                sum.update(answer.body);
                System.out.println(fields[1] + " " + answer.status + " " + answer.body.length + " " + sum.getValue());
            } catch (IOException error) {
                System.out.println(fields[1] + " " + error.getClass().getSimpleName());
            }
        }
    }

    static Answer withUrl(URI uri, String method, byte[] body) throws IOException {
        HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection();
        connection.setRequestMethod(method);
        connection.setReadTimeout(20000);
        if (body.length > 0) {
            connection.setDoOutput(true);
            connection.setFixedLengthStreamingMode(body.length);
            connection.getOutputStream().write(body);
        }
        int status = connection.getResponseCode();
        InputStream stream = status < 400 ? connection.getInputStream() : connection.getErrorStream();
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        if (stream != null) {
            stream.transferTo(bytes);
        }
        return new Answer(status, bytes.toByteArray());
    }

    static Answer withClient(URI uri, String method, byte[] body) throws IOException, InterruptedException {
        HttpRequest.BodyPublisher publisher =
            body.length > 0 ? HttpRequest.BodyPublishers.ofByteArray(body) : HttpRequest.BodyPublishers.noBody();
        HttpRequest request = HttpRequest.newBuilder(uri).method(method, publisher).build();
        HttpResponse<byte[]> response = CLIENT.send(request, HttpResponse.BodyHandlers.ofByteArray());
        return new Answer(response.statusCode(), response.body());
    }
}
