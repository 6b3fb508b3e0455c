"""Attribution methods that stand beside ours in every comparison."""
