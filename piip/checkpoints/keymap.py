"""Translation between our parameter names and those of the authors' files.

With `layouts.py` (inside a branch) this is all that is known about official names.
"""

from __future__ import annotations

from dataclasses import dataclass

from piip.checkpoints.head_names import HeadNames
from piip.checkpoints.layouts import Layout, Origin, Shape, unchanged

INJECTOR_PARTS = {
    "attention_gate": "ca_gamma",
    "ffn_gate": "cffn_gamma",
    "source_norm": "feat_norm",
    "attention.offsets": "attn.sampling_offsets",
    "attention.weights": "attn.attention_weights",
    "attention.value": "attn.value_proj",
    "attention.output": "attn.output_proj",
    "ffn.conv": "ffn.dwconv.dwconv",
}
MULTIMODAL_PARTS = {"attention_gate": "ca_weight", "ffn_gate": "cffn_weight"}
DENSE_PARTS = {
    "attention.query": "attn.wq",
    "attention.key": "attn.wk",
    "attention.value": "attn.wv",
    "attention.output": "attn.proj",
}
UNIT_PARTS = {
    "coarse_projection": "branch2to1_proj",
    "fine_projection": "branch1to2_proj",
    "to_coarse": "branch2to1_injector",
    "to_fine": "branch1to2_injector",
}
PROJECTOR_LAYERS = {"0": "1", "1": "3", "3": "6"}  # upstream counts its permutations


@dataclass(frozen=True)
class OfficialNames:
    """How one released model class names its parameters.

    Args:
        layouts: How each branch is stored.
        dense: Whether interactions use dense attention.
        merge: Layout of the merge: "linear", "conv" or "short".
        is_single: A single-branch baseline: no branch prefix, neck called `up`.
        per_branch_head: Classifiers live inside the branches.
        is_multimodal: A vision tower: gates have other names.
        dense_head: Names of a detection or segmentation head, or None.
        first_level: Number of the finest level: 1 is four times the merged map.
        unused: Shapes of what official files hold and we do not: parameters never used, indices.
    """

    layouts: tuple[Layout, ...]
    dense: bool
    merge: str
    is_single: bool
    per_branch_head: bool
    is_multimodal: bool = False
    dense_head: HeadNames | None = None
    first_level: int = 1
    unused: tuple[tuple[str, Shape], ...] = ()

    def branch_prefix(self, index: int) -> str:
        """Return what stands before the official names of a branch."""
        return "" if self.is_single else f"branch{index + 1}."

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return the official tensors that a parameter of ours is made of.

        Args:
            name: Our name, in a backbone or a classifier.
            shape: Its shape.

        Raises:
            ValueError: A parameter that the official model does not have.
        """
        name = name.removeprefix("backbone.")
        part, _, rest = name.partition(".")
        if part == "branches":
            index, _, inner = rest.partition(".")
            return self.layouts[int(index)].origin(inner, shape).under(self.branch_prefix(int(index)))
        if part == "head" and self.dense_head is not None:
            return self.dense_head.origin(rest, shape)
        rules = {
            "interactions": self._interaction,
            "merge": self._merge,
            "stage_merges": self._stage_merge,
            "neck": self._neck,
            "head": self._head,
        }
        if part not in rules:
            raise ValueError(f"Parameter {name} has no counterpart in the official model.")
        return unchanged(rules[part](rest), shape)

    def _interaction(self, rest: str) -> str:
        stage, _, pair, part, *names = rest.split(".")
        first = int(pair) + 1
        name = ".".join(names)
        parts = INJECTOR_PARTS | (DENSE_PARTS if self.dense else {}) | (MULTIMODAL_PARTS if self.is_multimodal else {})
        for ours, theirs in parts.items():
            if name == ours or name.startswith(ours + "."):
                name = theirs + name[len(ours) :]
                break
        return f"interactions.{stage}.interaction_units_{first}{first + 1}.{UNIT_PARTS[part]}.{name}"

    def _projection(self, rest: str, kind: str) -> tuple[int, str]:
        """Split `projections.I.NAME` and number the layers as upstream does."""
        _, index, *names = rest.split(".")
        if kind == "linear" and int(index) > 0:
            names[0] = str(2 * int(names[0]))  # upstream puts a permutation between the layers
        return int(index) + 1, ".".join(names)

    def _merge(self, rest: str) -> str:
        if rest.startswith("scales."):
            return f"w{int(rest.split('.')[1]) + 1}"
        branch, name = self._projection(rest, self.merge)
        return f"merge_branch{branch}.{name}"

    def _stage_merge(self, rest: str) -> str:
        stage, _, name = rest.partition(".")
        if name.startswith("scales."):
            return f"intermediate_merging_{stage}_w{int(name.split('.')[1]) + 1}"
        branch, name = self._projection(name, "short")
        return f"intermediate_merging_{stage}_branch{branch}.{name}"

    def _neck(self, rest: str) -> str:
        _, level, *names = rest.split(".")
        number = int(level) + self.first_level
        return f"{'up' if self.is_single else 'fpn'}{number}.{'.'.join(names)}"

    def _head(self, rest: str) -> str:
        if self.is_multimodal:
            _, index, layer, name = rest.split(".")
            return f"mm_projector.branch{int(index) + 1}.{PROJECTOR_LAYERS[layer]}.{name}"
        if self.per_branch_head:
            _, index, name = rest.split(".")
            return f"branch{int(index) + 1}.head.{name}"
        part, _, name = rest.partition(".")
        return f"{ {'norm': 'cls_norm', 'fc': 'cls_head'}[part] }.{name}"
