"""A worker that trains nothing: it answers each request in the store at its location, as a real one would."""

import logging
import sys

from automonai.domain.request import request_adapter
from automonai.domain.run import Result, RunState
from automonai.storage import keys
from automonai.storage.opening import open_store

logging.basicConfig(level=logging.INFO)
store = open_store(sys.argv[1])
for line in sys.stdin:
    request = request_adapter.validate_json(store.get(keys.request(line.strip())))
    result = Result(run_id=request.run_id, state=RunState.COMPLETE, loss=0.5)
    store.put(keys.result(request.run_id), result.model_dump_json().encode())
