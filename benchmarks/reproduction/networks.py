# SPDX-License-Identifier: Apache-2.0
"""Trunk first, then the plain and the branchy network from it: each trained once."""

from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.reproduction.schedules import schedule
from benchmarks.reproduction.training import copy_weights, freeze_all_but
from keras_branchy import networks


@dataclass(frozen=True)
class Recipe:
    """A network of `keras_branchy.networks`, its data and its schedule.

    Attributes:
        name: Of its trainings, such as `"b_alexnet"`.
        build: Function of `keras_branchy.networks`.
        kind: Of its schedule.
        data: Name of its data.
        options: For `build`.
        stands_in_for: The published network, where this is a smaller sibling.
        full: The recipe of the published network, for the schedule `"full"`.
    """

    name: str
    build: str
    kind: str
    data: str
    options: dict[str, Any] = field(default_factory=dict)
    stands_in_for: str | None = None
    full: "Recipe | None" = None

    def make(self, **more):
        return getattr(networks, self.build)(**{**self.options, **more})

    def for_schedule(self, which):
        return self.full if which == "full" and self.full is not None else self


B_LENET = Recipe("b_lenet", "b_lenet", "lenet", "mnist")
# On images as they are, so that the Chainer version's rows are of the same networks; the
# published schedule whitens.
B_ALEXNET = Recipe(
    "b_alexnet",
    "b_alexnet",
    "alexnet",
    "cifar10",
    full=Recipe("b_alexnet_whitened", "b_alexnet", "alexnet", "cifar10-zca"),
)
B_RESNET = Recipe(
    "b_resnet20",
    "b_resnet",
    "resnet",
    "cifar10",
    {"depth": 20},
    "b_resnet110",
    full=Recipe("b_resnet110", "b_resnet", "resnet", "cifar10-zca", {"depth": 110}),
)
# Trained for less time, and for three seeds.
CHAINER_ALEXNET = Recipe("chainer_b_alexnet", "b_alexnet", "chainer", "cifar10")
# The Chainer version says 110 and runs a depth of 20.
CHAINER_RESNET = Recipe(
    "chainer_b_resnet20",
    "b_resnet",
    "chainer-resnet",
    "cifar10",
    {"depth": 20, "variant": "chainer"},
)


def trunk(trainer, recipe, data, which, seed):
    """The plain network before the fork."""
    plan = schedule(recipe.kind, which)
    return trainer.trained(
        f"{recipe.name}-{which}-{seed}/trunk",
        lambda: recipe.make(backbone_only=True),
        data,
        plan.trunk,
        # Its rate does not fall, since its training goes on after the fork.
        schedule=replace(plan, cosine=False),
        seed=seed,
    )


def plain(trainer, recipe, data, which, seed):
    """The plain network, trained for as long as the branchy one."""
    return forked(trainer, recipe, data, which, seed, "plain", backbone_only=True)


def branchy(trainer, recipe, data, which, seed, part="branchy", **options):
    """The trunk with its exits, trained together; `part` names variants."""
    return forked(trainer, recipe, data, which, seed, part, **options)


def light(trainer, recipe, data, which, seed):
    """The network with the exits that measured cost chose; a recipe of those with some."""
    if recipe.build == "b_lenet":
        return under_plain(trainer, recipe, data, which, seed, "light", light_exit=True)
    return branchy(trainer, recipe, data, which, seed, "light", light_exits=True)


def under_plain(trainer, recipe, data, which, seed, part, **options):
    """Exits that train under the plain network as it is, and as long as the branchy one."""
    plan = schedule(recipe.kind, which)
    copy = copy_weights(plain(trainer, recipe, data, which, seed))

    def start(model):
        copy(model)
        freeze_all_but(model, model.exit_names[:-1])

    return trainer.trained(
        f"{recipe.name}-{which}-{seed}/{part}",
        lambda: recipe.make(**options),
        data,
        plan.joint,
        schedule=plan,
        seed=seed,
        start=start,
    )


def forked(trainer, recipe, data, which, seed, part, compile_as=None, **options):
    plan = schedule(recipe.kind, which)
    return trainer.trained(
        f"{recipe.name}-{which}-{seed}/{part}",
        lambda: recipe.make(**options),
        data,
        plan.joint,
        schedule=plan,
        seed=seed,
        start=copy_weights(trunk(trainer, recipe, data, which, seed)),
        **(compile_as or {}),
    )
