"""The subcommands that `egret` itself provides."""
