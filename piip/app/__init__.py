"""A web page that predicts with pyramids: `piip app`.

`limits` checks what strangers upload, `served` is a model with the settings of the page, `service` answers requests one
after another; none of them needs gradio. `page` builds the page of gradio components and `server` serves it; only these
two import gradio (extra `app`). A new setting is a field of `served.Settings` and a component in `page`.
"""
