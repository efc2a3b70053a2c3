"""Write a random two-layer Llama with its own tokenizer and chat template: 459k parameters, 1.8 MB, no network.

In: the folder to write (first argument). Out: a model folder that vLLM and transformers load. The same
versions give the same weights; it is big enough to be split over four ranks and says nothing sensible.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, CONTEXT = 512, 2048
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
SENTENCE = "The quick brown fox jumps over the lazy dog number {}. Kubernetes serves models quickly."
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] if m['role'] != 'system' else 'user' }}|>"
    "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on two hundred sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SENTENCE.format(n) for n in range(200)], trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **names)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model() -> LlamaForCausalLM:
    """Make the weights from a fixed seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


if __name__ == "__main__":
    make_model().save_pretrained(sys.argv[1], safe_serialization=True)
    make_tokenizer().save_pretrained(sys.argv[1])
