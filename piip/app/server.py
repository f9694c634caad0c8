"""The server of the page: on this machine unless told otherwise, and nothing is loaded from other hosts."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response

from piip.app.limits import Limits
from piip.app.page import build_page
from piip.app.service import Service

# Browsers then refuse to load from, or send to, any other host, whatever gradio's page asks for.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
FONTS = ("system-ui", "sans-serif")  # of the browser's machine; gradio's own come from Google


def build_app(service: Service) -> FastAPI:
    """Return the web application.

    Args:
        service: Answers its requests.
    """
    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def add_policy(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    theme = gr.themes.Default(font=FONTS, font_mono=("monospace",))
    return gr.mount_gradio_app(
        app,
        build_page(service),
        path="/",
        footer_links=[],
        theme=theme,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=service.limits.upload_bytes,
    )


def serve(
    models: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    limits: Limits | None = None,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        models: Model directories or hub names; none serves the shipped models.
        host: Address to listen on.
        port: Port to listen on.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        limits: Limits per request.

    Raises:
        ValueError: A model cannot be loaded, or the address is not free.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"Cannot listen on {host}, port {port} ({error}): choose another --port or --host."
            ) from error
        signal.signal(signal.SIGTERM, _exit)  # uvicorn raises it again when it has stopped: files are deleted first
        service = Service(models, device=device, limits=limits)
        try:
            app = build_app(service)
            print(f"Open http://{host}:{port} (stop with Ctrl+C)", flush=True)
            uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none")).run(sockets=[listener])
        finally:
            service.close()


def _exit(_signal: int, _frame: object) -> None:
    sys.exit(0)
