# The types are those of the Python twin: one source, so that the two cannot drift apart.
from pairpool._framing_py import MESSAGE_LIMIT as MESSAGE_LIMIT
from pairpool._framing_py import PIPED_CLAIMS as PIPED_CLAIMS
from pairpool._framing_py import READY_LIMIT as READY_LIMIT
from pairpool._framing_py import UNIT_LIMIT as UNIT_LIMIT
from pairpool._framing_py import await_message as await_message
from pairpool._framing_py import flush as flush
from pairpool._framing_py import pack as pack
from pairpool._framing_py import page_begin as page_begin
from pairpool._framing_py import page_claim as page_claim
from pairpool._framing_py import page_take as page_take
from pairpool._framing_py import receive as receive
from pairpool._framing_py import unpack as unpack
from pairpool._framing_py import wait_ready as wait_ready
