// What follows the model in an app, as detection.py beside it. This file was not compiled when the bundle was built.

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.exp
import kotlin.math.max
import kotlin.math.min

/** An object in a picture: edges in pixels of the model's input, and the line of its label in io/labels.txt, from 0. */
data class Found(
    val left: Float, val top: Float, val right: Float, val bottom: Float, val label: Int, val score: Float,
) {
    val area: Float get() = (right - left) * (bottom - top)

    /** Which share of the area of both lies in both (intersection over union). */
    fun shared(other: Found): Float {
        val width = max(0f, min(right, other.right) - max(left, other.left))
        val height = max(0f, min(bottom, other.bottom) - max(top, other.top))
        val both = width * height
        return both / max(area + other.area - both, 1e-9f)
    }
}

/**
 * Turns the outputs of a detector into objects: what an app does after the model.
 *
 * @param anchors [anchors, 4], see `anchors`
 * @param width of the input, and the other settings: io/detection.json
 */
class Detection(
    private val anchors: FloatArray,
    private val width: Float,
    private val height: Float,
    private val threshold: Float,
    private val overlap: Float,
    private val most: Int,
) {
    /**
     * The objects in one picture, the surest first.
     *
     * @param offsets the output `boxes` [anchors, 4], row-major
     * @param scores the output `scores` [anchors, 1 + labels], row-major; the first column is background
     */
    fun objects(offsets: FloatArray, scores: FloatArray): List<Found> {
        var left = likely(offsets, scores).sortedByDescending { it.score }.take(CANDIDATES)
        val kept = mutableListOf<Found>()
        while (left.isNotEmpty() && kept.size < most) {
            val first = left.first()
            kept.add(first)
            left = left.drop(1).filterNot { it.label == first.label && it.shared(first) > overlap }
        }
        return kept
    }

    private fun likely(offsets: FloatArray, scores: FloatArray): List<Found> {
        val count = anchors.size / 4
        val columns = scores.size / count
        val found = mutableListOf<Found>()
        for (anchor in 0 until count) {
            val row = scores.copyOfRange(anchor * columns, (anchor + 1) * columns)
            val highest = row.max()
            val powers = FloatArray(columns) { exp(row[it] - highest) }
            val sum = powers.sum()
            for (label in 0 until columns - 1) {
                val score = powers[label + 1] / sum
                if (score >= threshold) found.add(decoded(offsets, anchor, label, score))
            }
        }
        return found
    }

    private fun decoded(offsets: FloatArray, anchor: Int, label: Int, score: Float): Found {
        val at = 4 * anchor
        val x = anchors[at] + MOVED * offsets[at] * anchors[at + 2]
        val y = anchors[at + 1] + MOVED * offsets[at + 1] * anchors[at + 3]
        val halfWidth = anchors[at + 2] * exp(min(GROWN * offsets[at + 2], LARGEST)) / 2
        val halfHeight = anchors[at + 3] * exp(min(GROWN * offsets[at + 3], LARGEST)) / 2
        return Found(
            (x - halfWidth).coerceIn(0f, width), (y - halfHeight).coerceIn(0f, height),
            (x + halfWidth).coerceIn(0f, width), (y + halfHeight).coerceIn(0f, height),
            label, score,
        )
    }

    companion object {
        private const val MOVED = 0.1f // an offset of 1 moves an anchor by a tenth of its size,
        private const val GROWN = 0.2f // or makes it exp(0.2) times as large
        private const val LARGEST = 4.135f
        private const val CANDIDATES = 400

        /** The content of io/anchors.bin. */
        fun anchors(file: File): FloatArray {
            val bytes = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
            return FloatArray(bytes.remaining()).also { bytes.get(it) }
        }
    }
}
