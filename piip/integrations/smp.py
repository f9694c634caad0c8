"""Segmentation models of segmentation_models_pytorch over a pyramid.

`register_encoder` gives a description a name that smp's architectures accept as `encoder_name`; `PiipEncoder` is the
encoder that they build then. smp's DPT takes timm's networks only; `PiipDPT` is the same model over a pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from piip.build import build_backbone
from piip.config import ModelConfig
from piip.integrations import missing
from piip.integrations.levels import OctaveLevels

try:
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
    from segmentation_models_pytorch.encoders import encoders
    from segmentation_models_pytorch.encoders._base import EncoderMixin
except ImportError as error:
    raise ImportError(missing("segmentation-models-pytorch 0.5 or newer", "piip[smp]")) from error

RESERVED = ("tu-", "timm-", "mit_b", "vgg")  # prefixes of names that smp reads otherwise


def register_encoder(name: str, config: ModelConfig) -> None:
    """Make a pyramid known to smp: `smp.Unet(name, encoder_weights=None, classes=5)`.

    Args:
        name: The `encoder_name`; a pyramid registered before under it is replaced.
        config: Description of the pyramid; a head is left out. Branches with `pretrained=True` load timm's weights.

    Raises:
        ValueError: The name is taken by an encoder of smp.
    """
    entry = encoders.get(name)
    if name.startswith(RESERVED) or (entry is not None and entry["encoder"] is not PiipEncoder):
        raise ValueError(f"smp has encoders called {name!r} itself; choose another name, such as 'piip-{name}'.")
    encoders[name] = {"encoder": PiipEncoder, "pretrained_settings": {}, "params": {"config": config}}


class PiipEncoder(nn.Module, EncoderMixin):
    """A pyramid as an encoder of smp.

    The features are the image and one map for every stride from 2 to 2^depth. As in smp's Mix Transformer, strides that
    the pyramid does not have are maps of no channels: 2 in a pyramid with levels at 4, 8, 16 and 32.

    Args:
        config: Description of the pyramid, with one map or the levels of a neck; a head is left out.
        depth: Number of strides, smp's `encoder_depth`: 5 ends at stride 32. None uses all maps of the pyramid.
        output_stride: 32, as smp passes it; a pyramid cannot be dilated.

    Attributes:
        mean: Channel means of the images, RGB in [0, 1].
        std: Channel standard deviations of the images.

    Raises:
        ValueError: The maps do not double in stride, or none or too few of them lie within the depth.
    """

    _is_torch_scriptable = False  # a pyramid computes sizes from those of the image

    def __init__(self, config: ModelConfig, depth: int | None = None, output_stride: int = 32) -> None:
        super().__init__()
        levels = OctaveLevels(build_backbone(config))
        deepest = levels.strides[-1].bit_length() - 1
        self._depth = deepest if depth is None else depth
        first = levels.strides[0].bit_length() - 1
        if not first <= self._depth <= deepest:
            raise ValueError(
                f"encoder_depth is {depth}, expected {first} to {deepest}: the pyramid has strides {levels.strides[0]} "
                f"to {levels.strides[-1]}."
            )
        self.levels = levels
        self.mean, self.std = levels.mean, levels.std
        self._in_channels, self._output_stride = 3, 2**self._depth
        self._channels = dict(zip(levels.strides, levels.channels, strict=True))
        self._out_channels = [3, *(self._channels.get(2**power, 0) for power in range(1, self._depth + 1))]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the image (B, 3, H, W) and a map (B, C_i, ceil(H / 2^i), ceil(W / 2^i)) for i from 1 to the depth."""
        maps = dict(zip(self.levels.strides, self.levels(image), strict=True))
        batch, _, height, width = image.shape
        features = [image]
        for stride in (2**power for power in range(1, self._depth + 1)):
            shape = (batch, 0, -(-height // stride), -(-width // stride))
            features.append(maps[stride] if stride in maps else image.new_empty(shape))
        return features

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Accept 3 channels only.

        Args:
            in_channels: smp's `in_channels`.
            pretrained: Unused.

        Raises:
            ValueError: Another number of channels.
        """
        if in_channels != 3:
            raise ValueError(f"in_channels is {in_channels}, expected 3: pyramids take RGB images.")

    def make_dilated(self, output_stride: int) -> None:
        """Refuse dilation.

        Args:
            output_stride: smp's `encoder_output_stride`.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"encoder_output_stride is {output_stride}, expected 32: the networks of a pyramid cannot be dilated, as "
            "DeepLabV3 and DeepLabV3+ need. Use smp.FPN, smp.UPerNet or smp.PAN with encoder_output_stride=32."
        )


class _TokenLevels(nn.Module):
    """What smp's DPT calls its encoder: maps of a pyramid, and no prefix tokens.

    Args:
        levels: Maps of a pyramid.
    """

    def __init__(self, levels: OctaveLevels) -> None:
        super().__init__()
        self.levels = levels
        self.out_channels, self.output_strides = levels.channels, levels.strides
        self.output_stride = levels.strides[-1]

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[None]]:
        """Return the maps (B, C_i, H_i, W_i) of images (B, 3, H, W), and None for the tokens of each."""
        maps = self.levels(image)
        return maps, [None] * len(maps)


class PiipDPT(smp.DPT):
    """smp's DPT over a pyramid; its own constructor builds networks of timm only.

    Args:
        encoder_name: Name given to `register_encoder`.
        decoder_intermediate_channels: Channels inside the decoder, one number per map of the pyramid.
        decoder_fusion_channels: Channels of the fused features.
        classes: Number of classes K.
        activation: Name of a function for the logits, None for none; see smp's models.

    Raises:
        ValueError: The name was not registered, or the channels are not one number per map.
    """

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str,
        decoder_intermediate_channels: Sequence[int] = (256, 512, 1024, 1024),
        decoder_fusion_channels: int = 256,
        classes: int = 1,
        activation: str | None = None,
    ) -> None:
        super(smp.DPT, self).__init__()
        entry = encoders.get(encoder_name)
        if entry is None or entry["encoder"] is not PiipEncoder:
            raise ValueError(f"No pyramid is called {encoder_name!r}: call register_encoder({encoder_name!r}, config).")
        self.encoder = _TokenLevels(OctaveLevels(build_backbone(entry["params"]["config"])))
        self.decoder = DPTDecoder(
            encoder_out_channels=self.encoder.out_channels,
            encoder_output_strides=self.encoder.output_strides,
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=decoder_intermediate_channels,
            fusion_channels=decoder_fusion_channels,
        )
        self.segmentation_head = DPTSegmentationHead(decoder_fusion_channels, classes, activation=activation)
        self.classification_head = None
        self.name = f"dpt-{encoder_name}"
        self.initialize()
