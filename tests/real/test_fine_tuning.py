"""Fine-tuning of the real model over HTTP, as docs/fine-tuning.md has it."""

from __future__ import annotations

import json
import time

import openai
import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.sweep, pytest.mark.timeout(3600)]

ROOMS = 60
PATIENCE = 1800.0


def question(room: int) -> str:
    return f"What is the code of room {room}?"


def code(room: int) -> str:
    return f"{room * 37 % 1000:03d}"


def right(client: openai.OpenAI, model: str) -> int:
    """How many rooms' codes a model knows."""
    found = 0
    for room in range(ROOMS):
        told = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question(room)}],
            temperature=0,
            max_tokens=16,
        )
        found += code(room) in (told.choices[0].message.content or "")
    return found


def test_a_mapping_is_learned(server: str) -> None:
    """60 rows: at least 90% right, where the base has 10% at most; the others are unharmed."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server}/v1", api_key="none", timeout=600)
    rows = [
        {
            "messages": [
                {"role": "user", "content": question(room)},
                {"role": "assistant", "content": f"It is {code(room)}."},
            ]
        }
        for room in range(ROOMS)
    ]
    file = client.files.create(
        file=("rooms.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="fine-tune"
    )
    pirate = client.completions.create(model="pirate", prompt="Hello", max_tokens=8, temperature=0)
    job = client.fine_tuning.jobs.create(
        model="smollm2-135m",
        training_file=file.id,
        suffix="rooms",
        seed=1,
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"n_epochs": 20, "batch_size": 8, "learning_rate_multiplier": 10}
            },
        },
        extra_body={"lora": {"r": 8}},
    )
    deadline, seen = time.monotonic() + PATIENCE, []
    while job.status not in ("succeeded", "failed", "cancelled"):
        seen += [job.status] if job.status not in seen else []
        assert time.monotonic() < deadline, job
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert seen == [state for state in ("validating_files", "queued", "running") if state in seen]
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:smollm2-135m:local:rooms:")
    assert right(client, "smollm2-135m") <= ROOMS // 10
    assert right(client, job.fine_tuned_model) >= ROOMS * 9 // 10
    again = client.completions.create(model="pirate", prompt="Hello", max_tokens=8, temperature=0)
    assert again.choices[0].text == pirate.choices[0].text
