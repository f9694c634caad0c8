"""The section of docs/models.md on pyramids of today's networks, for tools/write_models_page.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from piip.branches.published_weights import weights_license
from piip.zoo import branch_licenses, model_config
from piip.zoo.families import NETWORK_FAMILIES, NetworkFamily

TEXT = """\
## Networks of today

Pyramids of current pretrained networks, which the authors did not release. None was trained as a whole and no result is
known: they start from timm's weights of their branches.

```python
classifier = piip.create_model("piip_sbl_672_448_224.dinov3", pretrained_branches=True, num_classes=10)
backbone = piip.create_model("piip_sbl_672_448_224.dinov3", pretrained_branches=True, features_only=True)
levels = piip.create_model("piip_sbl_672_448_224.dinov3", features_only=True, neck={"kind": "simple"})
```
<!-- not run in tests: it downloads 1.6 GB; tests/test_zoo_weights.py loads such files from a stand-in for the hub -->

- A name is `piip_NETWORKS_RESOLUTIONS.FAMILY`: networks from small to large, by the letters of the table of families,
  and resolutions from high to low.
- **A name without a task builds a classifier**, as plain names do in timm: one linear layer on the merged map, with
  `num_classes` classes (1,000 by default). `features_only=True` returns the merged map, with a neck its levels. Other
  heads are overrides: `neck={"kind": "simple"}, head={"kind": "mask_rcnn", "num_classes": 80}`.
- `pretrained=True` is an error: there are no weights of whole models. `pretrained_branches=True` loads every branch
  from the Hugging Face hub; position tables are resized to the branch.
- The rules are those of this library: exact resizing, slim merge, as many interactions as the networks allow (12, with
  ConvNeXt 4). Each branch keeps its class and register tokens.
- If the smallest network is a ConvNeXt, the merged map has stride 32. For detectors and segmentors use the neck
  `{kind: interaction, interactions: [0, 1, 2]}`, which makes levels of strides 4 to 32 (DINO: see its recipe).
- Recipes: [detection](../recipes/detection/piip_sbl_1120_672_448.dinov3_coco_dino.yaml),
  [instances](../recipes/instances/piip_sbl_1120_672_448.dinov3_coco_mask_rcnn.yaml),
  [segmentation](../recipes/segmentation/piip_sbl_672_448_224.dinov3_ade20k_upernet.yaml),
  [classification](../recipes/classification/piip_sbl_672_448_224.dinov3_in1k.yaml),
  [linear probe](../recipes/classification/piip_sbl_672_448_224.dinov3_in1k_linear_probe.yaml) and
  [frozen largest branch](../recipes/detection/piip_sbl_1120_672_448.dinov3_coco_dino_frozen.yaml).
  Change `model.name` for another name; the head of a recipe says what else hybrids and pairs need.

### Licences of the weights

The licence of this library does not cover weights. The table names the licences that timm states. Read their terms
before you use weights or share a model that started from them: `dinov3-license` is Meta's own licence, not Apache-2.0,
and `cc-by-nc-4.0` excludes commercial use. `piip list --json` and model cards name the licences, too.
"""


def named(family: str) -> list[str]:
    """Return the names of the models of a family."""
    return [f"piip_{pyramid}.{family}" for pyramid in NETWORK_FAMILIES[family].pyramids]


def names() -> list[str]:
    """Return the names of all models of the section."""
    return [name for family in NETWORK_FAMILIES for name in named(family)]


def _family_row(name: str, family: NetworkFamily) -> list[str]:
    networks = [f"{letters}: `{network}`" for letters, network in reversed(family.networks.items())]
    licenses = dict.fromkeys(weights_license(network) or "not stated" for network in family.networks.values())
    return [f"`{name}`", "<br>".join(networks), ", ".join(f"`{text}`" for text in licenses)]


def _rows(costs: Mapping[str, tuple[str, ...]]) -> Iterator[list[str]]:
    for name in names():
        licenses = dict.fromkeys(text or "not stated" for text in branch_licenses(model_config(name)).values())
        macs, params = costs[name][:2]
        yield [f"`{name}`", macs, params, ", ".join(f"`{text}`" for text in licenses)]


def write_section(costs: Mapping[str, tuple[str, ...]]) -> str:
    """Return the section.

    Args:
        costs: By name, of all models of the section: billions of multiply-adds and millions of parameters first.
    """
    families = [["family", "networks", "licences"], ["---"] * 3]
    families += [_family_row(name, family) for name, family in NETWORK_FAMILIES.items() if family.pyramids]
    models = [["name", "total G", "total M", "licences"], ["---"] * 4, *_rows(costs)]
    tables = ["".join(f"| {' | '.join(row)} |\n" for row in rows) for rows in (families, models)]
    title = "### Names\n\nCosts are those of the classifier of 1,000 classes.\n"
    return "\n".join([TEXT, tables[0], title, tables[1]])
