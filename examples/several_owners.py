"""One bank, several owners who never see each other's memories; and a fact that replaces an older one."""

from __future__ import annotations

import remanence as rm

lm = rm.load("nano")
with rm.Session(lm, bank="./bank", namespace="ada") as ada, rm.Session(lm, bank="./bank", namespace="otto") as otto:
    old = ada.write("Ada's meeting with the printer is on Monday.", source="calendar")
    ada.write("Ada's meeting with the printer is on Friday.", source="calendar", supersedes=old.ids[0])
    otto.write("Otto's boat is called Petrel.", source="diary")

    question = "On which day is Ada's meeting with the printer?"
    print("Ada recalls:", [recall.text for recall in ada.generate(question).recalled])
    print("Otto recalls:", [recall.text for recall in otto.generate(question).recalled])
