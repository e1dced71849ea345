"""Who is where: hosts in zones, a Triton each, gateways, and the Tritons that each gateway asks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

ZONES = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """A fleet of hosts of one kind.

    `tritons_each`: Tritons that a gateway asks, all of them where there are no more. `together`: all
    processes run on one machine, that of a single host.
    """

    hosts: int
    gateways: int
    tritons_each: int
    zones: int = ZONES
    together: bool = False

    @classmethod
    def of(cls, hosts: int, tritons_each: int) -> Layout:
        """Return a layout with a gateway on each host."""
        return cls(hosts, hosts, min(tritons_each, hosts))

    def host_of(self, gateway: int) -> int:
        return gateway % self.hosts

    def zone_of(self, host: int) -> int:
        return host % self.zones

    def asked_by(self, gateway: int, seed: int) -> list[int]:
        """Return the Tritons that a gateway asks: every Triton is asked by about as many gateways.

        Source: deterministic subsetting (Beyer et al. 2016, "Site Reliability Engineering", ch. 20).
        """
        parts = max(1, self.hosts // self.tritons_each)
        order = list(range(self.hosts))
        if parts > 1:
            Random(f"{seed} {gateway // parts}").shuffle(order)
        first = gateway % parts * self.tritons_each
        return order[first : first + self.tritons_each]
