"""Tokenizers and text encoders of the miniatures: real classes on a few words."""

from __future__ import annotations

from typing import Any

WORDS = (
    *("a", "on", "the", "to", "background", "red", "green", "blue", "yellow", "circle", "square"),
    *("triangle", "cross", "white", "black", "striped", "checkered", "moves", "moving", "left"),
    *("right", "up", "down", "grows", "shrinks", "rotates", "stands", "still"),
)
TEXT_WIDTH = 16
"""Width of a text encoder."""


def t5(length: int, kind: str = "T5") -> dict[str, Any]:
    """A word tokenizer of T5's class and a one-layer encoder of T5 or UMT5."""
    import transformers
    from transformers import T5Tokenizer

    config, encoder_class = (getattr(transformers, kind + n) for n in ("Config", "EncoderModel"))
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(f"▁{word}", -1.0) for word in sorted(set(WORDS))]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)
    encoder = encoder_class(
        config(
            vocab_size=len(vocab), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def llama_tokenizer() -> Any:
    """A word tokenizer under which the pipeline's template is as long as the pipeline cuts off."""
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as module
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "<unk>", "<s>"]
    marks += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    words = {word: i for i, word in enumerate([*marks, *sorted(set(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(marks)
    template = module.DEFAULT_PROMPT_TEMPLATE
    before = len(tokenizer.encode(template["template"].partition("{}")[0]).ids)
    start = " ".join(["<s>"] * (template["crop_start"] - before))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[("<s>", words["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        padding_side="right",
    )  # fmt: skip


def clip_tokenizer() -> Any:
    """CLIP's tokenizer on letters."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77
    )


def qwen(crop: int) -> tuple[Any, Any]:
    """A word tokenizer with a chat template and Qwen2.5-VL's text model of three layers.

    Args:
        crop: Tokens before the prompt, as many as the pipeline cuts off.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    marks = ["<pad>", "<unk>", "<s>", "<|im_end|>"]
    words = {word: i for i, word in enumerate([*marks, *sorted(set(WORDS))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(marks)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        padding_side="right",
        # the system message would be cut off whole
        chat_template="<s> " * crop + "{{ messages[-1]['content'] }} <|im_end|>",
    )  # fmt: skip
    encoder = Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=len(words), hidden_size=TEXT_WIDTH, intermediate_size=32,
            num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
            bos_token_id=2, eos_token_id=3,
            rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]},
        )
    )  # fmt: skip
    return tokenizer, encoder


def byt5(width: int) -> tuple[Any, Any]:
    """ByT5's tokenizer on bytes and a one-layer encoder."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    tokenizer = ByT5Tokenizer()
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    return tokenizer, encoder
