"""The page itself, by Gradio (extra `demo`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax_mixer.demo.answers import Model, Shown, open_models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors.base import Field

_PAD, _BRUSH = 320, 20  # pixels of a pad's side, and of the brush's radius
_FEW = 10  # fields below each other; more stand in columns
_COLUMNS = 4


def gradio() -> Any:
    """Return Gradio; a `UserError` if it is not installed."""
    try:
        import gradio  # pyright: ignore[reportMissingImports] # an extra
    except ImportError as error:
        raise UserError("a page needs the package gradio; run: pip install 'gradio>=6,<7'.") from error
    return gradio


def build(references: Sequence[str]) -> Any:
    """Return a page, `gradio.Blocks`, that asks models; to be launched with the arguments of `style`.

    Raises:
        UserError: Gradio is not installed, or a model cannot be asked.
    """
    gr = gradio()
    models = open_models(references)
    with gr.Blocks(analytics_enabled=False, title="vit_jax_mixer") as page:
        gr.Markdown("# " + " and ".join(model.name for model in models))
        with gr.Row():
            with gr.Column():
                inputs = _inputs(gr, models[0].form)
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            for number, model in enumerate(models):
                _answer(gr, model, number, ask, inputs)
    return page


def style() -> dict[str, Any]:
    """Return what `Blocks.launch` takes of how the page looks: nothing of it is loaded from elsewhere."""
    gr = gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": gr.themes.Default(**fonts), "max_file_size": "50mb", "footer_links": ["api"]}


def _inputs(gr: Any, form: Sequence[Field]) -> list[Any]:
    if len(form) <= _FEW:
        return [_input(gr, field) for field in form]
    found = []
    for first in range(0, len(form), _COLUMNS):
        with gr.Row():
            found += [_input(gr, field) for field in form[first : first + _COLUMNS]]
    return found


def _input(gr: Any, field: Field) -> Any:
    match field.kind:
        case "sketch":
            return gr.Sketchpad(
                label=field.name,
                type="numpy",
                canvas_size=(_PAD, _PAD),
                fixed_canvas=True,
                brush=gr.Brush(default_size=_BRUSH, colors=["#000000"], color_mode="fixed"),
                layers=False,
                transforms=(),
                elem_id="sketch",
            )
        case "number":
            return gr.Number(label=field.name, value=None, min_width=100)
        case "choice":
            return gr.Dropdown(label=field.name, choices=[*field.choices], value=None, min_width=100)
        case "lines":
            return gr.Textbox(label=field.name, lines=5, elem_id="lines")
    return gr.File(label=field.name, type="filepath", elem_id="file")


def _answer(gr: Any, model: Model, number: int, ask: Any, inputs: Sequence[Any]) -> None:
    with gr.Column():
        label = gr.Label(label=model.name, elem_id=f"classes_{number}")
        text = gr.Textbox(label=model.name, visible=False, elem_id=f"text_{number}")
        picture = gr.Image(visible=False, interactive=False, show_label=False)
        if model.explains:
            gr.Markdown("Red speaks for the likeliest class, blue against it.")

    def answer(*values: Any) -> tuple[Any, ...]:
        shown = model([_plain(field, value) for field, value in zip(model.form, values, strict=True)])
        return _updates(gr, shown)

    name = "ask" if not number else f"ask_{number}"
    ask.click(answer, inputs, [label, text, picture], api_name=name, show_progress="minimal")


def _plain(field: Field, value: Any) -> Any:
    """Return what a predictor takes of Gradio's values; the ink of a pad is its opacity."""
    if field.kind != "sketch" or value is None:
        return value
    layers = [np.asarray(layer)[..., 3] for layer in value["layers"]]
    return np.max(layers, axis=0) if layers else None


def _updates(gr: Any, shown: Shown) -> tuple[Any, ...]:
    return (
        gr.update(value=shown.shares or None, visible=bool(shown.shares)),
        gr.update(value=shown.text, visible=bool(shown.text)),
        gr.update(value=shown.picture, visible=shown.picture is not None),
    )
