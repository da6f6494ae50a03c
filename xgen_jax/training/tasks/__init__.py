"""What a run minimises. An objective is

    fingerprints() -> {name: fingerprint}     of the networks it stands on; a run goes on with these very ones
    arrays(batch) -> dict of arrays           on the host: what the device needs of a batch, captions tokenised
    prepare(arrays) -> dict of arrays         on the device, before the step: what frozen networks compute
    resized(arrays, bucket) -> dict           shapes of another bucket's prepared arrays, to compile for it ahead
    init(key, arrays) -> params               a dict of sub-trees
    loss(params, arrays, keys, step, frozen) -> (loss, metrics)
    frozen                                    what the loss needs beside, and never trains
    averaged(params) -> params                what of them is averaged over steps, and used afterwards
    optimizer(config, steps)                  the transformation of its gradients

and knows nothing of checkpoints or meshes. `keys` holds one PRNG key a sample, so that a sample's
noise depends on the seed, the step and the sample alone, never on the batch or the number of
devices around it. `frozen` is an argument, for closed over it would be constants of every compiled
step.
"""
