"""What a run would cost: cycles per instruction, DMA, a schedule. Modelled, not measured.

`constants` is the table of numbers with their sources, `cycles` the formula of each instruction,
`dma` what a transfer takes, `dependencies` who waits for whom, `schedule` when everything runs.
"""

LABEL = "modelled, not measured"
