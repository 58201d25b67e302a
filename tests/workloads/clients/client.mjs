// client.mjs http|fetch BASE LIST: as client.py, with Node's own clients.
import http from "node:http";
import fs from "node:fs";
import crypto from "node:crypto";

const [kind, base, list] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function withHttp(method, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request(base + path, { method, agent, timeout: 20000 }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => resolve([response.statusCode, Buffer.concat(parts)]));
      response.on("error", reject);
    });
    request.on("error", reject);
    request.end(body);
  });
}

async function withFetch(method, path, body) {
  const response = await fetch(base + path, { method, body });
  return [response.status, Buffer.from(await response.arrayBuffer())];
}

const request = kind === "http" ? withHttp : withFetch;
for (const line of fs.readFileSync(list, "ascii").trim().split("\n")) {
  const [method, path, size] = line.split(" ");
  const body = Number(size) ? "x".repeat(Number(size)) : undefined;
  try {
    const [status, bytes] = await request(method, path, body);
    console.log(path, status, bytes.length, crypto.createHash("md5").update(bytes).digest("hex"));
  } catch (error) {
    // undici names a reset by where it met it: in a read, or between two.
    const code = error.code ?? error.cause?.code ?? error.message;
    console.log(path, error.name, code === 'UND_ERR_SOCKET' ? 'ECONNRESET' : code);
  }
}
agent.destroy();
