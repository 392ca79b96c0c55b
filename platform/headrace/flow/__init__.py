"""The room of pure stages: what happens to a change between the wire and a verdict, as functions of their arguments.

Decode, gate, join, progressive validation, epochs, scores and the decision rule live here, in flow order. Nothing in
this room does I/O, reads a clock, or keeps state that its caller does not hold: live training, catch-up, shadowing and
rebuilding run the very same code and so get the very same numbers. Above it: `store`, `live`, `batch`. Below it:
`models`, `events`, `errors`.
"""
