"""Write, ask, see what the answer came from, forget."""

from __future__ import annotations

import remanence as rm

with rm.Session("nano", bank="./bank") as mind:
    receipt = mind.write("Ada's locker code is 4417. The locker is on the second floor.", source="notes.txt")
    print(f"{receipt.num_chunks} chunk, {receipt.num_tokens} tokens, {receipt.num_bytes} bytes of memory")

    reply = mind.generate("What is Ada's locker code?")
    print("answer:", reply.text)
    for recall in reply.recalled:
        print(f"  from {recall.source}: {recall.text!r}, relevance {recall.score:.2f}")
    print("without memory:", mind.generate("What is Ada's locker code?", recall=False).text)

    forgotten = mind.forget(*(recall.id for recall in reply.recalled))
    print("forgotten for good:", forgotten.exact)
    print("recalled now:", mind.generate("What is Ada's locker code?").recalled)
