// What follows the model in an app, as detection.py beside it. This file was not compiled when the bundle was built.

import Foundation

/// An object in a picture: edges in pixels of the model's input, and the line of its label in io/labels.txt, from 0.
public struct Found {
    public let left, top, right, bottom: Float
    public let label: Int
    public let score: Float
}

/// Reads the objects that a detector's file gives.
public struct Detection {
    let threshold: Float  // see io/detection.json

    /// - Parameters:
    ///   - folder: io/ of the bundle
    public init(folder: URL) throws {
        struct Facts: Decodable {
            let threshold: Float
        }
        let content = try Data(contentsOf: folder.appendingPathComponent("detection.json"))
        threshold = try JSONDecoder().decode(Facts.self, from: content).threshold
    }

    /// The objects in one picture, the surest first.
    /// - Parameters:
    ///   - boxes: the output `boxes` [most, 4], row-major
    ///   - scores: the output `scores` [most]: 0 where there is no object
    ///   - labels: the output `labels` [most]
    public func objects(boxes: [Float], scores: [Float], labels: [Float]) -> [Found] {
        scores.indices.filter { scores[$0] >= threshold }.map { place in
            let edges = boxes[4 * place..<4 * place + 4].map { $0 }
            return Found(
                left: edges[0], top: edges[1], right: edges[2], bottom: edges[3],
                label: Int(labels[place]), score: scores[place])
        }
    }
}
