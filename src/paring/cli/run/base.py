"""The pre-trained model and its tokenizer, with what can be told of a bad folder before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from paring.cli.data.task import Task
from paring.cli.run.options import ModelOptions
from paring.core.errors import AdapterError, SettingError, near
from paring.core.heads import IMPLIED
from paring.core.reading import json_object

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A frozen model to adapt.

    Attributes:
        model: with the head that the task needs.
        tokenizer: with a token to pad with.
        unset: parameters that were drawn anew, since the folder has none that fit: those of a new head.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    unset: frozenset[str] = frozenset()


def check_folder(name: str) -> None:
    """Refuse a folder that holds no model, before any time is spent on data.

    Raises:
        SettingError: says what is missing.
    """
    path = Path(name)
    if not path.is_dir():
        if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise SettingError(f"model_name_or_path={name!r}: there is no such folder.{near(path.name, beside)}")
        return
    weighty = any((path / weights).is_file() for weights in WEIGHTS)
    # The configuration of a classifier travels with its adapter.
    if (path / "adapter_config.json").is_file() and not weighty:
        raise SettingError(
            f"model_name_or_path={name!r} is an adapter, not a model. Give its base{_base_of(path)} as --model_name_or_path; to train on "
            f"from the adapter, give it as --init_adapter."
        )
    if not (path / "config.json").is_file():
        raise SettingError(f"model_name_or_path={name!r}: the folder has no config.json, so it holds no model that transformers can load.")
    if not weighty:
        raise SettingError(
            f"model_name_or_path={name!r}: the folder has a config.json but no weights ({', '.join(WEIGHTS[:3])}). "
            "Copy the weights into it, or give the hub id."
        )


def _base_of(adapter: Path) -> str:
    """The base model that an adapter names, as a part of a sentence."""
    try:
        base = json_object(adapter / "adapter_config.json").get("base_model_name_or_path")
    except AdapterError:
        return ""
    return f" {base!r}" if isinstance(base, str) else ""


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or adapter folder, or of a hub id; what has no padding token pads with its end token."""
    settings = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = loaded(lambda: AutoTokenizer.from_pretrained(name, **settings), name, "tokenizer")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    wanted = sorted({"tokenizer.json", *tokenizer.vocab_files_names.values()})
    if Path(name).is_dir() and tokenizer.vocab_files_names and not any((Path(name) / file).is_file() for file in wanted):
        # transformers makes an empty one then, to which every word is unknown.
        raise SettingError(f"The folder {name!r} has no tokenizer ({' or '.join(wanted)}); copy the files of the model's own into it.")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SettingError(f"The tokenizer of {name!r} has neither a padding nor an end token to pad batches with; set its pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(options: ModelOptions, task: Task, seed: int) -> Base:
    """The model with a head for ``task``, and its tokenizer.

    Raises:
        SettingError: nothing loadable there, or no such head for this kind of model.
    """
    check_folder(options.model_name_or_path)
    name = place_of(options.model_name_or_path)
    tokenizer = load_tokenizer(name, options.model_revision, options.trust_remote_code)
    common: dict[str, Any] = {
        "revision": options.model_revision,
        "trust_remote_code": options.trust_remote_code,
        "dtype": DTYPES[options.dtype],
        "attn_implementation": options.attn_implementation,
        "quantization_config": _quantisation(options, task),
    }
    common = {key: value for key, value in common.items() if value is not None}
    torch.manual_seed(seed)  # transformers draws a new head from the default generator
    if task.kind == "causal-lm":
        settings = {"revision": options.model_revision, "trust_remote_code": options.trust_remote_code}
        check_decoder(loaded(lambda: AutoConfig.from_pretrained(name, **settings), name, "config"), name)
        model, info = loaded(lambda: AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **common), name, "model")
        check_loaded(model, info, name)
        return Base(model=_ready(model, tokenizer, options), tokenizer=tokenizer)
    settings = {"revision": options.model_revision, "trust_remote_code": options.trust_remote_code}
    config = loaded(lambda: AutoConfig.from_pretrained(name, **settings), name, "config")
    if task.kind == "regression":
        config.num_labels, config.problem_type = 1, "regression"
    else:
        config.id2label, config.label2id = task.id2label, {label: index for index, label in task.id2label.items()}
        config.problem_type = "single_label_classification"

    def load() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **common
        )

    model, info = loaded(load, name, "model")
    check_loaded(model, info, name)
    if task.kind == "classification":
        model.config.id2label, model.config.label2id = task.id2label, {label: index for index, label in task.id2label.items()}
    unset = frozenset((*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])))
    return Base(model=_ready(model, tokenizer, options), tokenizer=tokenizer, unset=unset)


def place_of(name: str) -> str:
    """A folder by its whole path, so that what is recorded is found from anywhere; an id of the hub as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def check_decoder(config: PretrainedConfig, name: str) -> None:
    """Refuse an encoder where text is to be continued: it would load, with a head drawn at random that no adapter carries.

    Raises:
        SettingError: says what the model is, and what the data lacks for it.
    """
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not vars(config).get("is_decoder", False):
        raise SettingError(
            f"{name!r} is an encoder ({config.model_type}), which cannot be trained to continue text. If the data should be classified, it "
            "needs a column of labels (--label_column); otherwise give a decoder."
        )


def check_loaded(model: PreTrainedModel, info: Mapping[str, Any], name: str) -> None:
    """Refuse weights of another shape, or missing ones, outside of the head, where transformers would draw them at random.

    Raises:
        SettingError: the configuration and the weights do not belong together.
    """
    # What a language model lacks is nobody's to train; of a classifier the head may be missing.
    body = "" if model.can_generate() else f"{model.base_model_prefix}."
    wrong = [key for key in (*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])) if key.startswith(body)]
    # A pooler is drawn anew for many encoders that were trained without one.
    wrong = sorted(key for key in wrong if not key.startswith(f"{body}pooler."))
    if wrong:
        raise SettingError(
            f"The weights of {name!r} do not fit its config.json: {len(wrong)} tensors are missing or of another shape (first: "
            f"{wrong[0]!r}). Copy both from the same model."
        )


def _ready(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ModelOptions) -> PreTrainedModel:
    model.config.pad_token_id = tokenizer.pad_token_id
    if options.load_in_4bit or options.load_in_8bit:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[no-untyped-call, unused-ignore]
    return model


def _quantisation(options: ModelOptions, task: Task) -> BitsAndBytesConfig | None:
    if not (options.load_in_4bit or options.load_in_8bit):
        return None
    import bitsandbytes  # noqa: F401  # said in a sentence, if it is not installed, before weights are read

    # A new head has no weights to quantise, and is trained; of a language model transformers itself leaves the output layer out.
    skipped = None if task.kind == "causal-lm" else [*IMPLIED["SEQ_CLS"], "pre_classifier", "pooler"]
    if options.load_in_4bit:
        compute = torch.bfloat16 if options.dtype in ("auto", "bfloat16") else DTYPES[options.dtype]
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.bnb_4bit_quant_type,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=skipped,
        )  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)  # type: ignore[no-untyped-call]


def loaded(load: Callable[[], Any], name: str, what: str) -> Any:
    """What ``load`` returns; transformers' errors in one sentence.

    Raises:
        SettingError: it could not be loaded.
    """
    try:
        return load()
    except (OSError, ValueError, json.JSONDecodeError) as error:
        text = str(error).strip().splitlines()
        first = text[0] if text else type(error).__name__
        raise SettingError(
            f"The {what} of {name!r} could not be loaded: {first} Check the folder, or the id and the connection."
        ) from error
    except SafetensorError as error:
        raise SettingError(f"The weights of {name!r} are damaged ({error}); copy or download them again.") from error
