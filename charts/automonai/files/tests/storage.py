"""Write, read, list and delete an object in the store with a training's credentials."""

import os
import uuid

from automonai.storage.opening import open_store

CONTENT = b"written by helm test"


def main() -> None:
    """Fail if anything that a training does with the store does not work."""
    store = open_store(f"{os.environ['AUTOMONAI_STORE']}/helm-test/{uuid.uuid4().hex}")
    store.put("round/trip.txt", CONTENT)
    assert store.get("round/trip.txt") == CONTENT, "what was read is not what was written"
    assert list(store.list("round/")) == ["round/trip.txt"], "the object is not listed"
    store.delete("round/trip.txt")
    assert not store.exists("round/trip.txt"), "the object was not deleted"
    print("the store works with a training's credentials")


if __name__ == "__main__":
    main()
