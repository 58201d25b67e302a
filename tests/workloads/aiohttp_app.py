"""An asyncio service: one thread, many requests at once."""

import sys

import aiohttp
from aiohttp import web

from calls import calls, request_id


async def answer(request):
    ident = request_id(request.path)
    for hop, base in calls():
        async with request.app["session"].get(f"{base}/o/{ident}/{hop}") as response:
            await response.read()
            if response.status != 200:
                return web.Response(status=502, text=f"{ident} {hop} {response.status}")
    return web.Response(text=f"{ident} ok")


async def session(app):
    app["session"] = aiohttp.ClientSession()
    yield
    await app["session"].close()


app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
app.cleanup_ctx.append(session)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
