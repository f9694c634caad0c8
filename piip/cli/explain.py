"""The command `piip explain`."""

from __future__ import annotations

from pathlib import Path

from piip.output import to_json, writable_folder


def explain(
    image: str,
    *,
    model: str | None = None,
    out: Path = Path("out/explain"),
    device: str = "auto",
    json: bool = False,
) -> None:
    """Show on one page what a pyramid does with an image.

    The page has the image of every branch with its share of the multiply-adds, the points that branches sample from
    each other, their features before and after the last exchange, the sizes of the gates, and the result without each
    branch: the probability of the class, detections lost, or pixels that change class.

    Write OUT/explain.html, which needs no other file, the same as OUT/explain.png, and a PNG per section.

    Args:
        image: The image file.
        model: The saved model, RUN/model or RUN/best, or owner/name on the Hugging Face hub. Models without classes,
            such as converted backbones, have no result. Default: the included detector of nuclei.
        out: Folder of the page.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        json: Print JSON: "branches", "macs", "points", "features", "gates", "result", "without", "notes" and "files".
    """
    from piip.explain.inspect import explain_image
    from piip.explain.page import summary, write_page

    writable_folder(out)
    explanation = explain_image(image, model, device=device)
    files = [str(path) for path in write_page(explanation, out)]
    if json:
        print(to_json({**explanation.to_dict(), "files": files}))
        return
    print(*summary(explanation), sep="\n")
    for removal in explanation.removals:
        print(f"Without branch {removal.branch}: {removal.change.text}")
    print(f"Page: {files[0]}")
