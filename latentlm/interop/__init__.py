"""Weights from elsewhere.

from latentlm.interop import load_llama
model = load_llama("path/to/folder")        # config.json and *.safetensors, as transformers saves them
"""

from latentlm.interop.llama import is_llama_folder, llama_config, load_llama

__all__ = ["is_llama_folder", "llama_config", "load_llama"]
