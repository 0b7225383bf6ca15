// Tiles differ in their work up to a thousand times, so CTAs share the steps of all tiles evenly, as in Stream-K (arXiv
// 2301.03598). What each of them does depends on their number, never on their timing. (backward_dkdv.cu has the same within its struct Problem: there it takes
// fewer registers.)
#pragma once

struct Shares {
    const long long* ends;  // steps of all tiles up to and with each, [tiles]
    int tiles;

    // The first step of a CTA among those of all tiles.
    __device__ __forceinline__ long long start(int cta) const { return ends[tiles - 1] * cta / static_cast<int>(gridDim.x); }
    __device__ __forceinline__ long long begins(int tile) const { return tile > 0 ? ends[tile - 1] : 0; }
    __device__ __forceinline__ int tile_of(long long step) const {
        int low = 0, high = tiles - 1;
        while (low < high) {
            const int middle = (low + high) / 2;
            if (ends[middle] > step) high = middle;
            else low = middle + 1;
        }
        return low;
    }
};
