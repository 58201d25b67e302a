<?php
// client.php BASE LIST: as client.py, with PHP's own streams.
[$base, $list] = array_slice($argv, 1);
foreach (file($list, FILE_IGNORE_NEW_LINES) as $line) {
    [$method, $path, $size] = explode(' ', $line);
    $options = ['method' => $method, 'timeout' => 20, 'ignore_errors' => true, 'protocol_version' => 1.1,
        'header' => "Connection: close\r\nContent-Type: text/plain"];
    if ($size > 0) {
        $options['content'] = str_repeat('x', (int) $size);
    }
    $body = @file_get_contents($base . $path, false, stream_context_create(['http' => $options]));
    $first = $http_response_header[0] ?? 'nothing';
    echo $path, ' ', $first, ' ', $body === false ? 'failed' : strlen($body) . ' ' . crc32($body), "\n";
    unset($http_response_header);
}
