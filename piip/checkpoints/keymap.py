"""Translation between our parameter names and those of the authors' files.

Everything that is known about official names is in this file. Only names are translated, and for position tables a
leading row that is stored but never used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BLOCK_PARTS = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
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


@dataclass(frozen=True)
class OfficialNames:
    """How one released model class names its parameters.

    Args:
        plain_branches: For each branch, whether its blocks are those of `vit_models` (layer scale `gamma_1`) instead
            of InternViT's (`ls1.gamma`, and a position table with one unused row in front).
        dense: Whether interactions use dense attention.
        merge: Layout of the merge: "linear", "conv" or "short".
        is_single: A single-branch baseline: no branch prefix, neck called `up`.
        per_branch_head: Classifiers live inside the branches.
        first_level: Number of the finest level: 1 is four times the merged map.
        unused: Shapes of parameters that the official model has and never uses.
    """

    plain_branches: tuple[bool, ...]
    dense: bool
    merge: str
    is_single: bool
    per_branch_head: bool
    first_level: int = 1
    unused: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def has_unused_row(self, name: str) -> bool:
        """Tell whether the official tensor of our parameter has a leading row (dimension 1) that is never used."""
        found = re.match(r"(?:backbone\.)?branches\.(\d+)\.vit\.pos_embed$", name)
        return found is not None and not self.plain_branches[int(found.group(1))]

    def official(self, name: str) -> str:
        """Return the official name of our parameter.

        Raises:
            ValueError: A parameter that the official model does not have.
        """
        name = name.removeprefix("backbone.")
        part, _, rest = name.partition(".")
        rules = {
            "branches": self._branch,
            "interactions": self._interaction,
            "merge": self._merge,
            "stage_merges": self._stage_merge,
            "neck": self._neck,
            "head": self._head,
        }
        if part not in rules:
            raise ValueError(f"Parameter {name} has no counterpart in the official model.")
        return rules[part](rest)

    def _branch(self, rest: str) -> str:
        index, _, name = rest.partition(".")
        name = name.removeprefix("vit.")
        if self.plain_branches[int(index)]:
            for ours, theirs in BLOCK_PARTS.items():
                name = re.sub(rf"^(blocks\.\d+)\.{re.escape(ours)}$", rf"\1.{theirs}", name)
        return name if self.is_single else f"branch{int(index) + 1}.{name}"

    def _interaction(self, rest: str) -> str:
        stage, _, pair, part, *names = rest.split(".")
        first = int(pair) + 1
        name = ".".join(names)
        for ours, theirs in (INJECTOR_PARTS | DENSE_PARTS if self.dense else INJECTOR_PARTS).items():
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
        if self.per_branch_head:
            _, index, name = rest.split(".")
            return f"branch{int(index) + 1}.head.{name}"
        part, _, name = rest.partition(".")
        return f"{ {'norm': 'cls_norm', 'fc': 'cls_head'}[part] }.{name}"
