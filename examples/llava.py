"""Generate text about an image with transformers' LLaVA over a pyramid (a tiny one of random weights)."""

import torch
from transformers import LlamaConfig, LlavaConfig

import piip
from piip.integrations.transformers import PiipLlavaForConditionalGeneration, PiipVisionConfig

width, image_token = 64, 99  # of the language model
networks = [("vit_small_patch16_224", 32), ("vit_tiny_patch16_224", 64)]
tower = piip.ModelConfig(
    branches=tuple(piip.BranchConfig(name, image_size=size) for name, size in networks),
    merge=piip.MergeConfig("none"),
    head=piip.HeadConfig("projector", width=width),
)
vision = PiipVisionConfig(tower)
text = LlamaConfig(
    hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
)
config = LlavaConfig(
    vision_config=vision,
    text_config=text,
    image_token_index=image_token,
    vision_feature_layer=-1,
    vision_feature_select_strategy="full",
)
model = PiipLlavaForConditionalGeneration(config).eval()
image = torch.randn(1, 3, vision.image_size, vision.image_size)
prompt = torch.tensor([[1, *[image_token] * vision.num_image_tokens, 5, 6, 7]])  # <s> <image> and a question
tokens = model.generate(input_ids=prompt, pixel_values=image, max_new_tokens=8, do_sample=False)
print(f"{vision.num_image_tokens} image tokens, answer: {tokens[0, prompt.shape[1] :].tolist()}")
