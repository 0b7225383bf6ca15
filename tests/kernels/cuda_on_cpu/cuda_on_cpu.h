// CUDA C++ compiled by an ordinary C++ compiler, so that tests without a GPU check what the kernels compute.
//
// Blocks run one after another; the threads of a block are fibers, which switch only where they wait for one another (a
// barrier, a warp instruction). Between two waits a thread therefore runs alone: atomics are plain operations, and a
// result that depends on the order of threads shows when the same kernel is run with the order reversed.
// What it cannot check: speed, races within a barrier's phase that neither order shows, caches, inline PTX (sources keep
// that behind `#ifndef CUDA_ON_CPU`; primitives.h has the counterparts), threads of several blocks that wait for each other.
#pragma once

#define CUDA_ON_CPU 1

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "language.h"
#include "fibers.h"
#include "warp.h"
#include "memory.h"
#include "primitives.h"
#include "asynchrony.h"
#include "wgmma.h"
#include "launch.h"
