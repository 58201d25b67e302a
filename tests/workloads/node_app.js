// A Node service on the plain http module; calls others through a keep-alive agent.
"use strict";
const http = require("http");

const calls = (process.env.CALLS || "").split(" ").filter(Boolean).map((item) => {
  const at = item.indexOf("=");
  return [item.slice(0, at), item.slice(at + 1)];
});
const agent = new http.Agent({ keepAlive: true });

function call(url) {
  return new Promise((resolve, reject) => {
    http.get(url, { agent }, (response) => {
      response.resume();
      response.on("end", () => resolve(response.statusCode));
    }).on("error", reject);
  });
}

http.createServer(async (request, response) => {
  const id = request.url.split("?")[0].split("/")[2];
  try {
    for (const [hop, base] of calls) {
      const status = await call(`${base}/o/${id}/${hop}`);
      if (status !== 200) throw new Error(`${hop} ${status}`);
    }
    response.end(`${id} ok`);
  } catch (error) {
    response.statusCode = 502;
    response.end(`${id} ${error.message}`);
  }
}).listen(Number(process.argv[2]), "127.0.0.1");
