"""Uploading what was exported."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from paring.cli.console import say
from paring.core.errors import ExportError


def push(folder: Path, repository: str, private: bool | None) -> None:
    """Upload a folder as a commit to a model repository, made if need be.

    Raises:
        ExportError: no connection, no permission, or no such name; the folder itself is there and whole.
    """
    api = HfApi()
    try:
        target = api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=target.repo_id, folder_path=folder, commit_message="Exported by paring")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"What was exported is in {str(folder)!r}, but could not be uploaded to {repository!r} ({reason}). Log in with `hf auth "
            f"login`, check the name, and upload it with `hf upload {repository} {folder}`."
        ) from error
    say(f"uploaded to {commit.commit_url}")
