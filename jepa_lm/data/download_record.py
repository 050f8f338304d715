"""Record which downloaded files were verified, so that later starts neither ask the hub nor hash again."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jepa_lm.data.hub_listing import RemoteFile, Source
from jepa_lm.utils.files import read_object, write_json

RECORD = "downloads.json"


class DownloadRecord:
    """The repo's listing and the verified files of a destination, kept in its `downloads.json`.

    Args:
        destination: the local folder. source: the repo that the listing belongs to.
    """

    def __init__(self, destination: Path, source: Source) -> None:
        self.listing: list[RemoteFile] = []
        self._destination, self._source = destination, source
        self._verified: dict[str, Any] = {}
        # If the record is missing, damaged or another repo's, ask the hub and hash the files again.
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            known = read_object(destination / RECORD)
            self._verified = {
                path: stamp
                for path, stamp in known["verified"].items()
                if isinstance(stamp, list) and not any(isinstance(x, list | dict) for x in stamp)
            }
            if known["source"] == asdict(source):
                self.listing = [RemoteFile(**entry) for entry in known["files"]]

    def is_verified(self, file: RemoteFile) -> bool:
        """Return whether the local file was checked against this listing and has not changed since."""
        exists = file.below(self._destination).is_file()
        return exists and self._verified.get(file.path) == self._stamp(file)

    def remember(self, file: RemoteFile) -> None:
        """Record that the local file has just been checked."""
        self._verified[file.path] = self._stamp(file)
        self.save()

    def save(self) -> None:
        """Write the record to disk."""
        files = [asdict(file) for file in self.listing]
        known = {"source": asdict(self._source), "files": files, "verified": self._verified}
        write_json(self._destination / RECORD, known)

    def _stamp(self, file: RemoteFile) -> list[Any]:
        stat = file.below(self._destination).stat()
        return [stat.st_size, stat.st_mtime_ns, file.content_id]
