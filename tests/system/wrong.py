"""A headrace that computes wrongly, for what must notice it."""

import textwrap
from pathlib import Path

LEARNS_THE_OPPOSITE = textwrap.dedent(
    """
    import sys
    from headrace import cli
    from headrace.flow.progressive import Progressive

    learn = Progressive._learn

    def wrong(self, rows, answers, part):
        answers.y[part] = 1.0 - answers.y[part]  # it learns the opposite
        learn(self, rows, answers, part)
        answers.y[part] = 1.0 - answers.y[part]

    Progressive._learn = wrong
    sys.exit(cli.main(sys.argv[1:]))
    """
)

FLIPS_A_BIT = textwrap.dedent(
    f"""
    import os
    import sys

    sys.path.insert(0, {str(Path(__file__).parents[2])!r})
    os.environ["TORTURE_TRIGGER"] = "sabotage"  # while this file is there, in its working directory

    from headrace import cli
    from tests.torture import saboteur

    saboteur.flip_a_bit()
    sys.exit(cli.main(sys.argv[1:]))
    """
)
