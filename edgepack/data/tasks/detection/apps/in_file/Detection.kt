// What follows the model in an app, as detection.py beside it. This file was not compiled when the bundle was built.

/** An object in a picture: edges in pixels of the model's input, and the line of its label in io/labels.txt, from 0. */
data class Found(
    val left: Float, val top: Float, val right: Float, val bottom: Float, val label: Int, val score: Float,
)

/**
 * Reads the objects that a detector's file gives.
 *
 * @param threshold see io/detection.json
 */
class Detection(private val threshold: Float) {
    /**
     * The objects in one picture, the surest first.
     *
     * @param boxes the output `boxes` [most, 4], row-major
     * @param scores the output `scores` [most]: 0 where there is no object
     * @param labels the output `labels` [most]
     */
    fun objects(boxes: FloatArray, scores: FloatArray, labels: FloatArray): List<Found> =
        scores.indices.filter { scores[it] >= threshold }.map {
            val at = 4 * it
            Found(boxes[at], boxes[at + 1], boxes[at + 2], boxes[at + 3], labels[it].toInt(), scores[it])
        }
}
