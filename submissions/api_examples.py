"""The examples of the OpenAPI document. A test runs each of them against a live site."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from .api_models import MANIFEST, SHA_OF_EXAMPLE

_Examples = dict[str, dict[str, Any]]


def with_examples(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with an example for every body in JSON; added in place."""
    for (method, path), named in _examples().items():
        body = document["paths"][path][method]["requestBody"]
        body["content"]["application/json"]["examples"] = {
            summary.replace(" ", "-"): {"summary": summary, "value": value}
            for summary, value in named.items()
        }
    return document


def _examples() -> dict[tuple[str, str], _Examples]:
    """By method and path, then by what they show."""
    in_a_month = str((datetime.now(UTC) + timedelta(days=30)).date())
    return {
        ("post", "/api/v1/uploads"): {
            "weights": {"kind": "safetensors", "size": 3141592, "sha256": SHA_OF_EXAMPLE},
            "a graph": {"kind": "onnx", "size": 2718281, "sha256": SHA_OF_EXAMPLE[::-1]},
        },
        ("post", "/api/v1/submissions"): {
            "a random initialisation": {
                "manifest": MANIFEST,
                "suite": "smoke",
                "probes": ["linear"],
            },
            "anonymous until a date": {
                "manifest": MANIFEST,
                "tasks": ["smoke_lesion"],
                "anonymous": True,
                "embargo_until": in_a_month,
            },
        },
        ("patch", "/api/v1/submissions/{id}/card"): {
            "a citation": {
                "citation": "Me et al., My encoder, 2026",
                "note": "With *Markdown*.",
            },
        },
        ("post", "/api/v1/reports"): {
            "a leak": {
                "model_sha": SHA_OF_EXAMPLE,
                "task": "smoke_lesion",
                "kind": "leak",
                "text": "Section 3.1 of the paper lists this data set among those seen.",
            },
        },
        ("post", "/api/v1/reports/{id}/answer"): {
            "upheld": {"state": "upheld", "text": "Confirmed by the authors; card corrected."},
        },
    }
