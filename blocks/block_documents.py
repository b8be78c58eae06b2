"""Saved blocks as Prefect's API has them, read without Prefect, whose import takes seconds."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, HttpUrl, PrivateAttr

from slurm_ray_flow.blocks.server.api import Api


class BlockFields(BaseModel):
    """Fields that Prefect can save as a block, with the behaviour of that block.

    Attributes:
        kind: the slug of the block type.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # a password may be in it
    _block_type_name: ClassVar[str]
    _block_type_slug: ClassVar[str]
    _description: ClassVar[str]
    _documentation_url: ClassVar[HttpUrl | None] = None
    kind: ClassVar[str]
    _block_document_name: str | None = PrivateAttr(default=None)


F = TypeVar("F", bound=BlockFields)


def read_block(api: Api, block_type: type[F], name: str) -> F | None:
    """The saved block of a name; None for none.

    Raises:
        ValidationError: its fields are wrong.
        ServerError: Prefect does not answer.
    """
    path = f"/block_types/slug/{block_type.kind}/block_documents/name/{quote(name, safe='')}?include_secrets=true"
    document = api.find(path)
    if document is None:
        return None
    block = block_type.model_validate(document["data"])
    block._block_document_name = document["name"]
    for field, reference in document["block_document_references"].items():
        getattr(block, field)._block_document_name = reference["block_document"]["name"]
    return block


def saved_names(api: Api, kind: str) -> list[str]:
    """The names of the saved blocks of a kind.

    Raises:
        ServerError: Prefect does not answer.
    """
    documents: list[dict[str, Any]] = api.find(f"/block_types/slug/{kind}/block_documents") or []
    return [document["name"] for document in documents if document["name"]]
