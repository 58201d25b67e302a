<?php
// For mod_php and PHP-FPM: one process, one request; calls others through PHP's own http:// streams.
$id = explode('/', parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH))[2];
foreach (array_filter(explode(' ', (string) getenv('CALLS'))) as $item) {
    [$hop, $base] = explode('=', $item, 2);
    if (@file_get_contents("$base/o/$id/$hop") === false) {
        http_response_code(502);
        exit("$id $hop failed");
    }
}
echo "$id ok";
