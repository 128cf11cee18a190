# The types are those of the Python twin: one source, so that the two cannot drift apart.
from pairpool._framing_py import (
    MESSAGE_LIMIT as MESSAGE_LIMIT,
    PIPED_CLAIMS as PIPED_CLAIMS,
    READY_LIMIT as READY_LIMIT,
    UNIT_LIMIT as UNIT_LIMIT,
    await_message as await_message,
    flush as flush,
    pack as pack,
    page_begin as page_begin,
    page_claim as page_claim,
    page_take as page_take,
    receive as receive,
    unpack as unpack,
    wait_ready as wait_ready,
)
