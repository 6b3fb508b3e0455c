"""Image-to-image networks as public checkpoints have them: images in 0..1 in, images in 0..1 out, named in a config.

``name: stages.linear.networks.espcn:espcn`` with ``arguments`` and the path of ``weights``.
"""
