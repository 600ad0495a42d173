"""The rate term in other people's training loops.

`egret.integrations.huggingface` has a callback for `transformers.Trainer`, and
`egret.integrations.lightning` one for Lightning. Each module imports its framework; nothing else
in `egret` does. With `accelerate` the loop is one's own, and so are the lines in it.
"""
