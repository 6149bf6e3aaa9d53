"""What an operator does to aliases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from manylora.adapters.errors import AdapterExists, AdapterNotFound
from manylora.adapters.mix import check_name
from manylora.adapters.registry.records import AliasRecord
from manylora.server.names.aliases import shown, stored, target_terms
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.names.resolve import Resolver, digest_of


class AliasAdmin:
    """Makes, shows and deletes aliases. Lives on the event loop."""

    def __init__(
        self,
        mirror: RegistryMirror,
        resolver: Resolver,
        base: str,
        forget_counts: Callable[[str, bool], None],
    ) -> None:
        """``base`` is the base model's name. ``forget_counts(alias, everything)`` hears of arms that go."""
        self._mirror = mirror
        self._resolver = resolver
        self._base = base
        self._forget_counts = forget_counts

    async def put(self, name: str, arms: Sequence[tuple[str, float]], *, reset: bool = False) -> AliasRecord:
        """Let ``name`` mean a model string, or one of several with probabilities like their shares.

        A target is a name, a name and revision, a mix of these, or the base model. Targets must exist; they
        are looked up if need be. What was counted of targets that stay is kept, unless ``reset``.

        Raises:
            AdapterNameError, MixError: malformed, or a target is an alias itself.
            AdapterExists: ``name`` is an adapter's, or the base model's.
            AdapterNotFound: a target does not exist.
        """
        check_name(name)
        if name == self._base:
            raise AdapterExists(f"{name!r} is the name of the base model")
        await self._mirror.follow()
        terms = [term for target, _ in arms for term in target_terms(target, self._base)]
        await self._resolver.look_up(terms)
        for term in terms:
            if term.name not in self._mirror.aliases:  # which the registry refuses
                digest_of(term, self._mirror.get_ready(term.name))
        kept = stored(arms, self._base)
        record = await self._mirror.change(
            name, lambda registry: registry.aliases.put(name, kept, reset=reset)
        )
        self._forget_counts(name, reset)
        return shown(record, self._base)

    async def delete(self, name: str) -> AliasRecord:
        """Forget an alias; AdapterNotFound if there is none of that name."""
        record = await self._mirror.change(name, lambda registry: registry.aliases.remove(name))
        self._forget_counts(name, True)
        return record

    def get(self, name: str) -> AliasRecord:
        """One alias; AdapterNotFound if there is none of that name."""
        try:
            return shown(self._mirror.aliases[name], self._base)
        except KeyError:
            raise AdapterNotFound(f"there is no alias {name[:140]!r}") from None

    def list(self) -> list[AliasRecord]:
        """Every alias, by name."""
        aliases = self._mirror.aliases
        return [shown(aliases[name], self._base) for name in sorted(aliases)]
