"""The heads that a task implies: modules that are trained fully beside an adapter."""

from __future__ import annotations

IMPLIED = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""What PEFT adds to ``modules_to_save`` by itself, by task type (peft 0.20 to 0.21, peft_model.py, read)."""
