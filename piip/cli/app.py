"""The command `piip app`."""

from __future__ import annotations

from typing import Literal


def app(
    models: list[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: Literal["never"] = "never",
    device: str = "auto",
) -> None:
    """Serve a web page that predicts on images: upload, paste, take or choose one, and change the settings.

    The page shows the prediction, the image of every branch, and the multiply-adds by part at the chosen resolution.
    Users are served one after another. Only this machine can reach the page unless --host says otherwise; there is no
    password. Nothing is loaded from or sent to other hosts.

    Needs the extra `app`: pip install "piip[app]".

    Args:
        models: Model directories or owner/name on the Hugging Face hub. Default: the three included models.
        host: Address to listen on; 0.0.0.0 lets everybody in the network use the page.
        port: Port to listen on.
        share: A tunnel to the internet is never opened.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".

    Raises:
        ValueError: gradio is not installed, a model cannot be loaded, or the port is taken.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError('This needs gradio: pip install "piip[app]".')
    from piip.app.server import serve

    serve(models or (), host=host, port=port, device=device)
