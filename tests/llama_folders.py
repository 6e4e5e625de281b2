"""Small random Llamas in folders as transformers saves them, with tokenizers of several rules."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

from latentlm.tokenizer import BPETokenizer

CONTEXT = 96
TEXT = "def area(width, height):\n    return width * height\n\n"
TEXT += "import os\nclass Point:\n    def __init__(self, x):\n        self.x = x\n"
BOS, START, END = "<s>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llama_folder(
    folder: Path, *, bos: bool = True, chat_template: str | dict[str, str] | None = None, context: int = CONTEXT
) -> Path:
    """A Llama of two blocks with sharp predictions; its tokenizer has special tokens and puts BOS before a text if `bos`."""
    folder.mkdir(parents=True, exist_ok=True)
    BPETokenizer.train([TEXT * 3], vocabulary=290).save(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([BOS, START, END])
    if bos:
        special = [(BOS, backend.token_to_id(BOS))]
        backend.post_processor = TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=special)
    backend.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": BOS}
    if chat_template is not None:
        named = chat_template if isinstance(chat_template, str) else [
            {"name": name, "template": template} for name, template in chat_template.items()
        ]
        said["chat_template"] = named  # type: ignore[assignment]
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=backend.token_to_id(BOS),
        eos_token_id=backend.token_to_id("<|endoftext|>"),
        initializer_range=0.3,
    )
    state = torch.get_rng_state()
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_rng_state(state)
    return folder
