"""The files that travel with an adapter: its model's configuration with the labels, its tokenizer, its chat template."""

from __future__ import annotations

from pathlib import Path

NAMES = (
    *("config.json", "generation_config.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
"""What transformers writes; whatever else lies in a folder is not the adapter's."""


def companions(source: str | Path) -> dict[str, bytes]:
    """Those that lie beside an adapter in a local folder, by name; none for one on the hub."""
    return {name: (Path(source) / name).read_bytes() for name in NAMES if (Path(source) / name).is_file()}
