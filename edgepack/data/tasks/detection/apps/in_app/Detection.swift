// What follows the model in an app, as detection.py beside it. This file was not compiled when the bundle was built.

import Foundation

/// An object in a picture: edges in pixels of the model's input, and the line of its label in io/labels.txt, from 0.
public struct Found {
    public let left, top, right, bottom: Float
    public let label: Int
    public let score: Float

    var area: Float { (right - left) * (bottom - top) }

    /// Which share of the area of both lies in both (intersection over union).
    func shared(_ other: Found) -> Float {
        let width = max(0, min(right, other.right) - max(left, other.left))
        let height = max(0, min(bottom, other.bottom) - max(top, other.top))
        let both = width * height
        return both / max(area + other.area - both, 1e-9)
    }
}

/// Turns the outputs of a detector into objects: what an app does after the model.
public struct Detection {
    let anchors: [Float]  // [anchors, 4], the content of io/anchors.bin
    let width, height: Float  // of the input; these and the others: io/detection.json
    let threshold, overlap: Float
    let most: Int

    static let moved: Float = 0.1  // an offset of 1 moves an anchor by a tenth of its size,
    static let grown: Float = 0.2  // or makes it exp(0.2) times as large
    static let largest: Float = 4.135
    static let candidates = 400

    /// - Parameters:
    ///   - folder: io/ of the bundle
    public init(folder: URL) throws {
        struct Facts: Decodable {
            let picture: [Float]
            let threshold, overlap: Float
            let most: Int
        }
        let facts = try JSONDecoder().decode(
            Facts.self, from: Data(contentsOf: folder.appendingPathComponent("detection.json")))
        let bytes = try Data(contentsOf: folder.appendingPathComponent("anchors.bin"))
        anchors = bytes.withUnsafeBytes { raw in  // little-endian, as all of Apple's processors
            (0..<bytes.count / 4).map { raw.loadUnaligned(fromByteOffset: 4 * $0, as: Float.self) }
        }
        (width, height) = (facts.picture[0], facts.picture[1])
        (threshold, overlap, most) = (facts.threshold, facts.overlap, facts.most)
    }

    /// The objects in one picture, the surest first.
    /// - Parameters:
    ///   - offsets: the output `boxes` [anchors, 4], row-major
    ///   - scores: the output `scores` [anchors, 1 + labels], row-major; the first column is background
    public func objects(offsets: [Float], scores: [Float]) -> [Found] {
        var left = Array(likely(offsets, scores).sorted { $0.score > $1.score }.prefix(Detection.candidates))
        var kept: [Found] = []
        while let first = left.first, kept.count < most {
            kept.append(first)
            left = left.dropFirst().filter { $0.label != first.label || $0.shared(first) <= overlap }
        }
        return kept
    }

    private func likely(_ offsets: [Float], _ scores: [Float]) -> [Found] {
        let count = anchors.count / 4
        let columns = scores.count / count
        var found: [Found] = []
        for anchor in 0..<count {
            let row = scores[anchor * columns..<(anchor + 1) * columns]
            let highest = row.max() ?? 0
            let powers = row.map { exp($0 - highest) }
            let sum = powers.reduce(0, +)
            for label in 0..<columns - 1 where powers[label + 1] / sum >= threshold {
                found.append(decoded(offsets, anchor, label, powers[label + 1] / sum))
            }
        }
        return found
    }

    private func decoded(_ offsets: [Float], _ anchor: Int, _ label: Int, _ score: Float) -> Found {
        let at = 4 * anchor
        let x = anchors[at] + Detection.moved * offsets[at] * anchors[at + 2]
        let y = anchors[at + 1] + Detection.moved * offsets[at + 1] * anchors[at + 3]
        let halfWidth = anchors[at + 2] * exp(min(Detection.grown * offsets[at + 2], Detection.largest)) / 2
        let halfHeight = anchors[at + 3] * exp(min(Detection.grown * offsets[at + 3], Detection.largest)) / 2
        return Found(
            left: min(max(x - halfWidth, 0), width), top: min(max(y - halfHeight, 0), height),
            right: min(max(x + halfWidth, 0), width), bottom: min(max(y + halfHeight, 0), height),
            label: label, score: score)
    }
}
