"""A cluster on a virtual clock, which runs the decisions of the real one.

A request comes to a router, which places it by `services.router.policies` on what its `services.router.ledger` knows;
a worker admits it by `headway.policy`, plans by it after every step, and puts batches together with its own
scheduler; a shared device is granted by `headway.device.order`. What is simulated is time alone: steps take what
their curves say, with noise; messages take a hop.

- `clock`: what happens when; `host`: how long a step takes; `device`: one worker's own, or shared.
- `models`: the three kinds of work as data; `text`: a text worker's steps, several tokens at a time.
- `worker`, `router`: the loops around the decisions; `cluster`: all of it together, from arrivals to a tally.
- `stream`: arrivals without end, seeded; `tally`: what came of them.
- `studies`: what is compared; `report`: tables; `live`: the same load on real processes, beside the simulation.
"""
