"""The properties that make each method this one and no other, and the tests that prove them.

A method's tests are in ``tests/methods/test_<method>.py``, those of a way to train a model's own weights in
``tests/train/test_<name>.py``, one function ``test_<property>`` for each. What a property says stands in the
method's ``About.verified``, word for word; the docs print both.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PROPERTIES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "adalora": {
            "first_step_moves_e_alone": "at the first step A and B have no gradient and E has one; the update is zero",
            "budget": "the budget at each step is the paper's, and so many triplets are left",
            "peft_trajectory": "sensitivities, masks and triplets are those of PEFT's AdaLoRA, step by step",
            "ties_leave_the_budget": "of triplets with equal scores exactly the budget is left",
            "masked_triplets_may_come_back": "a triplet that was masked may come back until the choice is made for good, and not after",
            "orthogonality": "the orthogonality term has the gradient of its definition, zero for orthonormal factors",
            "resume": "a run that goes on at any step ends with the same bits",
            "export": "the export holds the triplets that are left, as many as the target says",
        },
        "dora": {
            "peft": "outputs and gradients are those of PEFT's DoRA",
            "trajectory": "a run of 40 steps is PEFT's, step by step",
            "lengths": "the lengths of the rows of the adapted weight are the magnitudes",
            "constant_length": "the length that is divided by has no gradient",
            "any_direction": "any method may say the direction, and keeps its own promises",
            "export": "the export loads in stock PEFT, a module without a rank included",
        },
        "dylora": {
            "output_at_a_rank": "the output at rank b is that of the first b ranks at the scale alpha / b",
            "no_rank_beyond": "no rank beyond b has a part in the output or a gradient; alone, only the last one has",
            "hold": "what a step does not train stays, bit for bit, and so does the optimizer's memory of it",
            "nesting": "truncating the factors at b, exporting at b and setting the rank to b are the same",
            "draws": "the draws follow from the seed and the step, the same for all modules",
            "largest_is_lora": "always drawing the largest rank is LoRA, bit for bit",
        },
        "gs_lora": {
            "penalty": "the penalty is the sum of the norms of all blocks, modules or matrices, by hand",
            "proximal_step": "the proximal step keeps a group's direction and takes rate x penalty off its norm, down to zero",
            "order_of_members": "the order of modules and members makes no difference",
            "zero_group_stays": "a group at zero stays there, whatever an optimizer remembers; without it the output is the same bits",
            "one_step_for_each": "one proximal step for each optimizer step, in a loop and with Trainer, also with accumulated gradients",
            "resume": "a run that goes on at any step ends with the same bits",
            "without_a_penalty_it_is_lora": "without a penalty it is LoRA, bit for bit",
            "bounded_loss": "the loss to forget has no gradient once the cross-entropy has reached its bound",
            "prototype": "the divergence from a prototype is zero where the output is the prototype",
        },
        "lisa": {
            "so_many_blocks": "so many blocks train, and they change at multiples of the interval only",
            "frozen_stays": "what is frozen stays to the bit, and all else moves at every step",
            "equally_often": "every block is drawn equally often, and so is every pair",
            "state_of_what_trains": "the optimizer holds the state of what trains, and moments begin again",
            "resume": "a run that goes on at any step ends with the same bits",
        },
        "lora_fa": {
            "a_never_moves": "A never moves, and B's gradient is LoRA's",
            "memory": "nothing as wide as the input is kept for the backward",
        },
        "lora_ga": {
            "start": "the output at the start is the base's, and the base's weight is untouched",
            "orthogonal": "the rows of A and the columns of B are orthogonal, of norm c",
            "first_step": "one step of gradient descent moves the update by the truncated SVD of rank 2r of the full gradient",
            "scale_of_the_loss": "the start does not change when the loss is multiplied",
            "export": "the export is a plain LoRA of rank 2r, equal to the merged model",
            "gradient": "the gradient is that of the loss by the weight, whatever memory it is given and however often a module is called",
            "refused": "training before calibration is refused",
        },
        "lora_plus": {
            "b_has_its_own_rate_under_any_schedule": "B's rate is the ratio times A's under any schedule, in a plain loop and with Trainer",
            "the_groups_are_those_of_peft_but_for_vectors": "the groups are those of PEFT's create_loraplus_optimizer, but for vectors",
            "with_a_trainer": "an optimizer that steps both alike is told so",
        },
        "lora_sb": {
            "start": "s B R A at the start is the truncated SVD of -rate x sign(G)",
            "orthonormal": "A's rows and B's columns are orthonormal, also on a bfloat16 base",
            "only_the_core": "only R is trained, r^2 parameters a module",
            "first_output": "the first output differs from the base's by exactly s B R A x",
            "projection": "a step on R moves the weight by the two-sided projection of the full gradient",
            "scale_of_the_loss": "the start does not change when the loss is multiplied",
            "refused": "training before calibration is refused",
        },
        "lora_xs": {
            "start": "A and B are the weight's leading singular triplets, and frozen",
            "only_the_core": "only R is trained, r^2 parameters a module",
            "projection": "a step on R moves the weight by the two-sided projection of the full gradient",
        },
        "nola": {
            "start": "the update is zero at the start",
            "first_gradients": "at the start alpha's gradient is exactly zero, and beta's is <s dL/dW A_0^T, B_j>",
            "materialised": "the update and its gradients are those of materialised bases",
            "same_bits": "bases drawn in blocks, drawn at once and kept in memory give the same bits",
            "count": "2k parameters a module, whatever its width and rank",
            "global_generators": "training touches no global generator",
            "fresh_process": "a fresh process reloads the update to the bit, also after casts of the model",
            "made_once": "the bases are made once a step in each direction, however often a module is called, and not at all in evaluation",
        },
        "olora": {
            "start": "at the start B's columns are orthonormal and B A is the leading part of W = Q R, as in PEFT's olora",
            "residual": "the residual W - s B0 A0 is PEFT's modified base weight",
            "export": "the export is a plain LoRA of rank 2r on the untouched base",
        },
        "pissa": {
            "start": "s B A at the start is the truncated SVD of the weight, and its factors are those of PEFT's pissa",
            "residual": "the residual W - s B0 A0 is PEFT's modified base weight",
            "training": "training moves the output as it does in PEFT with the base modified",
            "export": "the export is a plain LoRA of rank 2r on the untouched base",
        },
        "s2_lora": {
            "formula": "forward equals x (W + s B diag(e) A)^T with the shared A and B, and the update is zero at the start",
            "gradients": "the gradient of e_i is s B_i^T G A_i^T, that of the shared factors the sum over the modules",
            "count": "r (in + out) parameters a shape and r a module",
            "one_vector_one_module": "changing one module's vector changes that module alone",
            "proximal": "the vectors take SoRA's proximal step, and the shared factors none",
            "shared_for_good": "the factors are in a state once, and stay shared in copies, casts, a fresh process and a run that goes on",
            "two_adapters": "two adapters on one model do not share",
            "export": "the export is a plain LoRA, equal to the live model to 1e-6",
        },
        "shira": {
            "dense_model": "output and gradients are those of the dense model, and PEFT's SHiRA has the same",
            "others_stay": "so many entries are trained as a LoRA of the rank has, and all others of the weight stay bit for bit",
            "masks": "each mask is what it says: the largest weights, gradients or products, or drawn by the seed",
            "overlap": "two random masks overlap in the share that chance gives",
            "nothing_dense": "nothing dense is kept for the backward",
            "six_bytes": "a checkpoint takes six bytes an entry, half of PEFT's, and reloads exactly",
            "export": "the export loads in stock PEFT and gives the live model's outputs",
            "switching": "switching an adapter in and out leaves the base bit for bit",
            "refused": "training before calibration is refused",
        },
    }
)
"""{method: {property: what it says}}"""
