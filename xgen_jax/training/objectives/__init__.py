"""What a run minimises. An objective is

    frozen() -> {name: fingerprint}           of the networks it does not train; a run goes on with these very ones
    arrays(batch) -> dict of arrays           on the host: what the device needs of a batch, captions tokenised
    prepare(arrays) -> dict of arrays         on the device, before the step: what frozen networks compute
    init(key, arrays) -> params
    loss(params, arrays, keys) -> (loss, metrics)

and knows nothing of optimisers, checkpoints or meshes. `keys` holds one PRNG key a sample, so that a sample's noise
depends on the seed, the step and the sample alone, never on the batch or the number of devices around it.
"""
