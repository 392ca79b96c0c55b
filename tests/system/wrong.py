"""A headrace that computes wrongly, for what must notice it."""

import textwrap

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
