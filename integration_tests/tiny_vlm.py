"""Build a tiny vision-language model with random weights that vllm-mlx loads.

    python tiny_vlm.py ARCH OUT --tokenizer DIR [--template plain|qwen3.5|qwen3.6]

ARCH is qwen3_5 (linear and full attention), qwen3_vl or gemma4. DIR holds any byte-level BPE
tokenizer; the special tokens of the Qwen family are added to it. The text is gibberish, so it tests
routes, caches and errors, never quality: greedy answers are deterministic and depend on the images.
It runs under the server's own Python (mlx, mlx-vlm and tokenizers, no torch).
"""

import argparse
import importlib
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

SPECIAL = (
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    + [f"<|{name}|>" for name in ("vision_start", "vision_end", "vision_pad")]
    + [f"<|{name}|>" for name in ("image_pad", "video_pad")]
)
MARKUP = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"

# ChatML with tools in the system block and image/video placeholders; three variants:
#   plain    no reasoning markup: each prompt strictly extends the one before
#   qwen3.5  the generation prompt opens <think>; reasoning is rendered only in assistant
#            turns after the last user message, so a new user turn rewrites history
#            (same shape as the published template, which vllm-mlx patches by regex)
#   qwen3.6  as qwen3.5, but chat_template_kwargs={"preserve_thinking": true} keeps all
#            reasoning (sent back as message.reasoning_content), so history is stable
GATES = {
    "plain": "false",
    "qwen3.5": "loop.index0 > ns.last_query_index",
    "qwen3.6": "(preserve_thinking is defined and preserve_thinking is true) or (loop.index0 > ns.last_query_index)",
}
TEMPLATE = r"""
{%- macro body(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- elif content -%}
    {%- for part in content -%}
      {%- if part.type in ('image', 'image_url') or 'image' in part or 'image_url' in part -%}{{- '@IMG@' -}}
      {%- elif part.type in ('video', 'video_url') -%}{{- '@VID@' -}}
      {%- elif 'text' in part -%}{{- part.text -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set first_system = messages and messages[0].role == 'system' -%}
{%- if first_system or tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if first_system -%}{{- body(messages[0].content) -}}{%- endif -%}
  {%- if tools -%}
    {{- '\n\n# Tools\n\n<tools>' -}}
    {%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
    {{- '\n</tools>\n\nCall a function with\n<tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>' -}}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endif -%}
{%- set ns = namespace(last_query_index=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last_query_index = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
  {%- if m.role == 'system' and loop.first -%}{# done above #}
  {%- elif m.role == 'tool' -%}
    {{- '<|im_start|>user\n<tool_response>\n' + body(m.content) + '\n</tool_response><|im_end|>\n' -}}
  {%- else -%}
    {%- set content = body(m.content) -%}
    {%- set reasoning = m.reasoning_content if m.reasoning_content is string else '' -%}
    {%- if m.role == 'assistant' -%}
      {%- if GATE %}
        {{- '<|im_start|>' + m.role + '\n<think>\n' + reasoning.strip() + '\n</think>\n\n' + content }}
      {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + content }}
      {%- endif %}
    {%- else -%}
      {{- '<|im_start|>' + m.role + '\n' + content -}}
    {%- endif -%}
    {%- for call in (m.tool_calls or []) -%}
      {%- set fn = call.function if call.function is defined else call -%}
      {{- '\n<tool_call>\n<function=' + fn.name + '>\n' + (fn.arguments if fn.arguments is string else (fn.arguments | tojson)) + '\n</function>\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if THINKING -%}{{- '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false else '<think>\n' -}}{%- endif -%}
{%- endif -%}
"""

QWEN_VISION = dict(
    depth=2,
    hidden_size=64,
    intermediate_size=128,
    out_hidden_size=64,
    num_heads=4,
    patch_size=16,
    spatial_merge_size=2,
    temporal_patch_size=2,
    in_channels=3,
    num_position_embeddings=256,
    deepstack_visual_indexes=[],
)


def qwen3_5(ids, vocab):
    text = dict(
        model_type="qwen3_5_text",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        full_attention_interval=4,  # 3 linear + 1 full attention
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        linear_conv_kernel_dim=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rms_norm_eps=1e-6,
        vocab_size=vocab,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        attention_bias=False,
        eos_token_id=ids["<|im_end|>"],
        rope_parameters=dict(
            type="default",
            mrope_section=[2, 1, 1],
            rope_theta=10000.0,
            partial_rotary_factor=0.25,
            mrope_interleaved=True,
        ),
    )
    return dict(
        architectures=["Qwen3_5ForConditionalGeneration"],
        model_type="qwen3_5",
        text_config=text,
        vision_config=dict(QWEN_VISION, model_type="qwen3_5"),
        **qwen_ids(ids, vocab),
    )


def qwen3_vl(ids, vocab):
    text = dict(
        model_type="qwen3_vl_text",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        vocab_size=vocab,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        rope_scaling=dict(type="default", mrope_section=[4, 2, 2], mrope_interleaved=True),
    )
    return dict(
        architectures=["Qwen3VLForConditionalGeneration"],
        model_type="qwen3_vl",
        text_config=text,
        vision_config=dict(QWEN_VISION, model_type="qwen3_vl"),
        **qwen_ids(ids, vocab),
    )


def qwen_ids(ids, vocab):
    return dict(
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        vocab_size=vocab,
        tie_word_embeddings=False,
    )


def gemma4(ids, vocab):
    text = dict(
        model_type="gemma4_text",
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=128,
        num_attention_heads=4,
        head_dim=16,
        global_head_dim=32,
        num_key_value_heads=2,
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=0,
        vocab_size=vocab,
        vocab_size_per_layer_input=vocab,
        sliding_window=512,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        sliding_window_pattern=4,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        use_double_wide_mlp=False,
        tie_word_embeddings=True,
        rope_parameters=dict(
            full_attention=dict(
                partial_rotary_factor=0.25, rope_theta=1e6, rope_type="proportional"
            ),
            sliding_attention=dict(partial_rotary_factor=1.0, rope_theta=1e4, rope_type="default"),
        ),
        eos_token_id=ids["<|im_end|>"],
    )
    vision = dict(
        model_type="gemma4_vision",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        global_head_dim=16,
        patch_size=16,
        position_embedding_size=1024,
        pooling_kernel_size=3,
        default_output_length=70,
    )
    # Gemma's own special tokens do not exist in a Qwen tokenizer: reuse Qwen's.
    return dict(
        architectures=["Gemma4ForConditionalGeneration"],
        model_type="gemma4",
        text_config=text,
        vision_config=vision,
        audio_config=None,
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        audio_token_id=ids["<|vision_pad|>"],
        boi_token_id=ids[VISION_START],
        eoi_token_id=ids[VISION_END],
        vision_soft_tokens_per_image=70,
        hidden_size=64,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        vocab_size=vocab,
        tie_word_embeddings=True,
    )


def printable(tokenizer, vocab):
    """True for ids whose text is printable ASCII (never specials, never EOS)."""
    keep = np.zeros(vocab, dtype=bool)
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items()}
    for i in range(min(vocab, tokenizer.get_vocab_size())):
        text = "" if i in special else tokenizer.decode([i])
        keep[i] = bool(text.strip()) and text.isascii() and text.isprintable()
    return mx.array(keep)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("arch", choices=["qwen3_5", "qwen3_vl", "gemma4"])
    ap.add_argument("out", type=Path)
    ap.add_argument("--tokenizer", type=Path, required=True)
    ap.add_argument("--template", choices=list(GATES), default="qwen3.6")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()

    from tokenizers import AddedToken, Tokenizer

    tok = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    tok.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tok.add_tokens([AddedToken(text, normalized=False) for text in MARKUP])
    ids = tok.get_vocab(with_added_tokens=True)
    vocab = -(-len(ids) // 64) * 64
    config = globals()[args.arch](ids, vocab)

    # Random weights, in the names mlx-vlm itself uses (so its sanitize() is a no-op).
    mx.random.seed(args.seed)
    arch = importlib.import_module(f"mlx_vlm.models.{args.arch}")
    cfg = arch.ModelConfig.from_dict(json.loads(json.dumps(config)))
    for part in ("text_config", "vision_config"):  # some from_dict leave these as dicts
        if isinstance(getattr(cfg, part), dict):
            cls = {"text_config": arch.TextConfig, "vision_config": arch.VisionConfig}[part]
            setattr(cfg, part, cls.from_dict(getattr(cfg, part)))
    model = arch.Model(cfg)
    keep = printable(tok, vocab)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if value.dtype in (mx.bfloat16, mx.float16):
            value = value.astype(mx.float32)
        if name.endswith("lm_head.weight") or (
            name.endswith("embed_tokens.weight") and config["tie_word_embeddings"]
        ):
            value = mx.where(
                keep[:, None], value, mx.zeros_like(value) if "lm_head" in name else value * 1e-3
            )
        weights[name] = value
    args.out.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(args.out / "model.safetensors"), weights, metadata={"format": "mlx"})

    def dump(name, obj):
        (args.out / name).write_text(json.dumps(obj, indent=1))

    config["torch_dtype"] = "float32"
    dump("config.json", config)
    dump("generation_config.json", {"eos_token_id": config["eos_token_id"], "do_sample": False})
    tok.save(str(args.out / "tokenizer.json"))
    tc = json.loads((args.tokenizer / "tokenizer_config.json").read_text())
    template = TEMPLATE.strip().replace("@VID@", VISION_START + VIDEO + VISION_END)
    template = template.replace(
        "@IMG@", IMAGE if args.arch == "gemma4" else VISION_START + IMAGE + VISION_END
    )
    template = template.replace("THINKING", "false" if args.template == "plain" else "true")
    template = template.replace("GATE", GATES[args.template])
    tc.pop("added_tokens_decoder", None)
    tc["eos_token"] = "<|im_end|>"
    tc.update(tokenizer_class="Qwen2Tokenizer", chat_template=template)
    if args.arch == "gemma4":  # the names Gemma4Processor asks its tokenizer for
        tc.update(
            image_token=IMAGE,
            boi_token=VISION_START,
            eoi_token=VISION_END,
            audio_token="<|vision_pad|>",
            video_token=VIDEO,
        )
    dump("tokenizer_config.json", tc)
    (args.out / "chat_template.jinja").write_text(template)
    if args.arch == "gemma4":
        dump(
            "processor_config.json",
            {
                "processor_class": "Gemma4Processor",
                "image_seq_length": 70,
                "image_processor": {
                    "image_processor_type": "Gemma4ImageProcessor",
                    "patch_size": 16,
                    "pooling_kernel_size": 3,
                    "max_soft_tokens": 70,
                },
            },
        )
    else:
        size = {"shortest_edge": 56 * 56, "longest_edge": 512 * 512}
        common = dict(
            patch_size=16,
            temporal_patch_size=2,
            merge_size=2,
            size=size,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        dump(
            "preprocessor_config.json",
            dict(
                common,
                image_processor_type="Qwen2VLImageProcessorFast",
                processor_class="Qwen3VLProcessor",
            ),
        )
        dump(
            "video_preprocessor_config.json",
            dict(common, video_processor_type="Qwen3VLVideoProcessor"),
        )
    total = sum(v.size for v in weights.values())
    print(f"{args.out}: {args.arch}, {len(weights)} tensors, {total / 1e6:.1f}M parameters")


if __name__ == "__main__":
    main()
